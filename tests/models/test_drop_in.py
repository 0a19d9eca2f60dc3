"""The lesson drops into a starter with the course's names, and passes its checks there."""

import shutil
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from engine.files import ROOT

LESSON = (
    *("modules/attention.py", "modules/gpt2_layer.py"),
    *("models/gpt2.py", "models/base_gpt.py", "optimizer.py"),
)
CONFIG = """
from transformers import PretrainedConfig


class GPT2Config(PretrainedConfig):
    def __init__(
        self, vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=3072, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        max_position_embeddings=1024, initializer_range=0.02, layer_norm_eps=1e-5,
        name_or_path="gpt2", **kwargs,
    ):
        super().__init__(name_or_path=name_or_path, **kwargs)
        for name, value in list(locals().items()):
            if name not in ("self", "kwargs", "__class__"):
                setattr(self, name, value)
"""
UTILS = """
import torch
import torch.nn as nn


def get_extended_attention_mask(attention_mask, dtype):
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0


def model_size_to_params(model_size):
    return {"d": 32, "l": 2, "num_heads": 4}
"""
SANITY_CHECK = """
import sys

import torch
from transformers import GPT2Model as OpenAIGPT2Model

from models.base_gpt import GPTPreTrainedModel
from models.gpt2 import GPT2Model
from utils import *

theirs = OpenAIGPT2Model.from_pretrained(sys.argv[1])
ours = GPT2Model.from_pretrained(model=sys.argv[1], **model_size_to_params("gpt2"))
assert isinstance(ours, GPTPreTrainedModel) and isinstance(ours, nn.Module)
ids = torch.tensor([[7, 3, 8, 5, 2, 0, 0, 0], [9, 1, 60, 4, 4, 12, 33, 6]])
mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8])
found = ours(ids, mask)
expected = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
real = mask.unsqueeze(-1)
assert torch.allclose(found["last_hidden_state"] * real, expected * real, atol=1e-4)
assert torch.allclose(found["last_token"][0], expected[0, 4], atol=1e-4)
"""
OPTIMIZER_TEST = """
import numpy as np
import torch

from optimizer import AdamW

torch.manual_seed(0)
model = torch.nn.Linear(3, 2, bias=False)
optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, correct_bias=True)
draw = np.random.default_rng(0)
for _ in range(1000):
    optimizer.zero_grad()
    x = torch.FloatTensor(draw.uniform(size=[model.weight.shape[1]]))
    y = torch.Tensor([x[0] + x[1], -x[2]])
    ((model(x) - y) ** 2).sum().backward()
    optimizer.step()
expected = torch.tensor(np.load("optimizer_test.npy"))
assert torch.allclose(expected, model.weight, atol=1e-6, rtol=1e-4)
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """A tree with the course's config and utils, in which the lesson's files replace its own."""
    folder = tmp_path_factory.mktemp("starter")
    for name in LESSON:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "optimizer_test.npy", folder)
    programs = {"config": CONFIG, "utils": UTILS, "sanity": SANITY_CHECK, "adamw": OPTIMIZER_TEST}
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    config = TheirConfig(**shape, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize("words", [["sanity.py", "model"], ["adamw.py"]], ids=["sanity", "adamw"])
def test_the_lesson_drops_into_the_starter(starter, words):
    done = subprocess.run([sys.executable, *words], cwd=starter, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
