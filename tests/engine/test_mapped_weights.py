"""Weights that stay in their files are those that are read, and what is dropped takes no memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel
from transformers import GPT2Model as TheirModel

from benchmarks.timing import FORGET
from config import GPT2Config
from engine.errors import InputError
from engine.files import ROOT
from engine.hub import load_gpt2
from engine.mapped_weights import mapped_gpt2
from engine.settings import Settings
from models.base_gpt import read_config
from models.gpt2 import GPT2Model
from programs.tasks import TASKS

SHAPE = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16}
WEIGHTS = "model.safetensors"


@pytest.fixture(params=["language model", "base model", "shards", "old masks"])
def folder(request, tmp_path) -> Path:
    """A checkpoint as transformers writes it, or as the hub's oldest ones are."""
    torch.manual_seed(0)
    kind = TheirModel if request.param == "base model" else GPT2LMHeadModel
    size = "50KB" if request.param == "shards" else "1GB"
    model = kind(TheirConfig(**SHAPE, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / WEIGHTS).exists() == (request.param != "shards")
    if request.param == "old masks":
        change(tmp_path, lambda tensors: tensors | {"h.0.attn.bias": torch.ones(1, 1, 16, 16)})
    return tmp_path


def change(folder, function) -> None:
    tensors = function(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_the_model_is_the_one_that_is_read(folder):
    read = load_gpt2(str(folder))
    mapped = mapped_gpt2(folder, read_config(folder))
    assert not mapped.training and mapped.config == read.config
    states = read.state_dict(), mapped.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    for kind, expected in read(ids).items():
        torch.testing.assert_close(mapped(ids)[kind], expected)


def test_a_mapped_weight_that_changes_leaves_the_file_as_it_is(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = mapped_gpt2(folder, read_config(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def without_a_tensor(tensors: dict) -> dict:
    return {name: t for name, t in tensors.items() if name != "transformer.h.1.mlp.c_fc.bias"}


def with_a_shorter_one(tensors: dict) -> dict:
    name = "transformer.h.1.attn.c_attn.weight"
    return tensors | {name: tensors[name][:, :-3].contiguous()}


def with_a_vector_for_a_matrix(tensors: dict) -> dict:
    return tensors | {"transformer.h.1.mlp.c_fc.weight": torch.ones(2)}


@pytest.mark.parametrize(
    "damage, said",
    [
        (without_a_tensor, "h.1.mlp.c_fc.bias is missing"),
        (with_a_shorter_one, "h.1.attn.c_attn.weight has another shape"),
        (with_a_vector_for_a_matrix, "h.1.mlp.c_fc.weight has another shape"),
    ],
)
def test_files_that_do_not_fit_are_refused_as_by_the_usual_reading(damage, said, tmp_path):
    GPT2LMHeadModel(TheirConfig(**SHAPE)).save_pretrained(tmp_path)
    change(tmp_path, damage)
    assert mapped_gpt2(tmp_path, read_config(tmp_path)) is None
    for mapped in (False, True):
        with pytest.raises(InputError, match=said):
            load_gpt2(str(tmp_path), mapped=mapped)


def test_halves_are_read_whole(tmp_path):
    theirs = GPT2LMHeadModel(TheirConfig(**SHAPE)).half()
    theirs.save_pretrained(tmp_path)
    assert mapped_gpt2(tmp_path, read_config(tmp_path)) is None
    assert load_gpt2(str(tmp_path), mapped=True).dtype == torch.float32


SETTINGS = {"num_labels": 5, "hidden_dropout_prob": 0.0, "fine_tune_mode": "full-model"}


def test_a_model_in_4_bits_is_the_same_from_mapped_weights(folder, monkeypatch):
    settings = Settings(SETTINGS | {"model_size": str(folder), "extension": ["qlora"]})
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(TASKS["sst"].build_model(settings).state_dict())
        monkeypatch.setattr("engine.hub.mapped_gpt2", lambda *_: None)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


PEAK = """import json, sys
import torch
from benchmarks.timing import forget_peak
from engine.devices import peak_mb
from engine.settings import Settings
from programs.tasks import TASKS

cpu, settings = torch.device("cpu"), json.loads(sys.argv[1])
for folder in sys.argv[2:]:  # the first one brings all that has to be imported
    forget_peak(cpu)
    before = peak_mb(cpu)
    TASKS["sst"].build_model(Settings(settings | {"model_size": folder}))
print(peak_mb(cpu) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not FORGET.exists(), reason="needs Linux's /proc")
def test_a_model_that_is_kept_in_4_bits_is_never_whole_in_memory(tmp_path):
    """In the file its layers have 303 MB, in 4 bits 39; read whole it takes 585."""
    shape = {"vocab_size": 61, "num_attention_heads": 8, "hidden_size": 512}
    for layers in (1, 24):
        config = GPT2Config(**shape, num_hidden_layers=layers, intermediate_size=2048)
        GPT2Model(config).save_pretrained(tmp_path / str(layers))
    settings = json.dumps(SETTINGS | {"extension": ["qlora"]})
    command = [sys.executable, "-c", PEAK, settings, str(tmp_path / "1"), str(tmp_path / "24")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 300
