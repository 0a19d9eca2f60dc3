"""The sanity check passes for our GPT-2, says how close it is, and fails for a wrong one."""

import subprocess
import sys

import pytest
import torch
from course_files import call_main
from torch import nn
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel
from transformers import GPT2Model as TheirModel

import sanity_check
from config import GPT2Config
from engine.files import ROOT
from engine.hub import save_gpt2
from models.gpt2 import GPT2Model
from modules.gpt2_layer import GPT2Layer
from utils import get_extended_attention_mask

CONFIG = GPT2Config(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=16,
    initializer_range=0.3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 whose weights are large enough that a wrong activation shows."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    save_gpt2(GPT2Model(CONFIG), folder)
    return folder


def exit_of(monkeypatch, folder) -> str:
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "sanity_check", folder)
    return str(stop.value.code)


def test_the_real_program_passes_and_prints_the_largest_difference(folder):
    run = subprocess.run(
        [sys.executable, "sanity_check.py", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    right, left, verdict = run.stdout.splitlines()
    assert verdict == "Your GPT2 implementation is correct!"
    for side, line in {"right": right, "left": left}.items():
        said, _, rest = line.partition(": largest difference ")
        assert said == f"padding on the {side}" and 0 < float(rest.split(",")[0]) < 1e-4


@torch.no_grad()
def test_the_courses_check_passes_right_after_loading(tmp_path):
    """It never calls eval(), as HuggingFace's from_pretrained returns a model in that mode."""
    GPT2LMHeadModel(TheirConfig(vocab_size=61, n_embd=32, n_layer=2, n_head=4)).save_pretrained(
        tmp_path
    )
    theirs, ours = (kind.from_pretrained(str(tmp_path)) for kind in (TheirModel, GPT2Model))
    assert not ours.training and ours.config.hidden_dropout_prob == 0.1
    ids, mask = sanity_check.example_batch(61)
    expected = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    found = ours(ids, mask)["last_hidden_state"]
    real = mask[:, :, None]
    close = {"atol": 1e-5, "rtol": 1e-5}  # the course allows 1e-1 and 1e-2
    torch.testing.assert_close(found * real, expected.hidden_states[-1] * real, **close)


def test_the_exact_gelu_fails(folder, monkeypatch, capsys):
    class ExactGELU(nn.GELU):
        def __init__(self, approximate):
            super().__init__(approximate="none")

    monkeypatch.setattr(nn, "GELU", ExactGELU)
    said = exit_of(monkeypatch, folder)
    assert "differs from HuggingFace's by" in said and "0.0001" in said
    assert "correct" not in capsys.readouterr().out


def scale_a_weight(model) -> None:
    model.gpt_layers[0].out_dense.weight.data *= 1.01


def blunt_a_norm(model) -> None:
    model.gpt_layers[1].out_layer_norm.eps = 1e-2


def swap_two_heads(model) -> None:
    model.gpt_layers[1].attention_dense.weight.data = model.gpt_layers[
        1
    ].attention_dense.weight.data.roll(8, dims=1)


def shift_the_positions(model) -> None:
    model.pos_embedding.weight.data = model.pos_embedding.weight.data.roll(1, dims=0)


@pytest.mark.parametrize(
    "damage", [scale_a_weight, blunt_a_norm, swap_two_heads, shift_the_positions]
)
def test_a_damaged_model_fails(folder, monkeypatch, damage):
    load = GPT2Model.from_pretrained

    def damaged(*args, **kwargs):
        model = load(*args, **kwargs)
        damage(model)
        return model

    monkeypatch.setattr(GPT2Model, "from_pretrained", damaged)
    assert "differs" in exit_of(monkeypatch, folder)


def test_a_wrong_left_padding_alone_fails(folder, monkeypatch):
    monkeypatch.setattr("models.gpt2.get_extended_attention_mask", lambda mask, dtype: None)
    assert "differs" in exit_of(monkeypatch, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_model_that_gives_no_numbers_fails(folder, monkeypatch, value, layer):
    forward = GPT2Layer.forward

    def broken(self, hidden_states, attention_mask):
        output = forward(self, hidden_states, attention_mask)
        return output * value if self is layers[layer] else output

    load, layers = GPT2Model.from_pretrained, []

    def loaded(*args, **kwargs):
        model = load(*args, **kwargs)
        layers.extend(model.gpt_layers)
        return model

    monkeypatch.setattr(GPT2Layer, "forward", broken)
    monkeypatch.setattr(GPT2Model, "from_pretrained", loaded)
    assert "differs" in exit_of(monkeypatch, folder)


@torch.no_grad()
def test_hidden_states_are_the_embedding_each_layer_and_the_last_norm(folder):
    model = GPT2Model.from_pretrained(str(folder))
    input_ids, mask = sanity_check.example_batch(61)
    states = sanity_check.hidden_states(model, input_ids, mask)
    assert len(states) == 3
    assert torch.equal(states[0], model.embed(input_ids))
    added = get_extended_attention_mask(mask, torch.float32)
    assert torch.equal(states[1], model.gpt_layers[0](states[0], added))
    assert torch.equal(states[2], model(input_ids, mask)["last_hidden_state"])
    assert not model.embed_dropout._forward_hooks


def test_a_folder_that_does_not_exist_is_one_line_and_exit_2(monkeypatch, capsys):
    assert exit_of(monkeypatch, "./nowhere") == "2"
    error = capsys.readouterr().err
    assert error.startswith("error: ./nowhere") and error.count("\n") == 1
