"""Weights that stay in their files are those that are read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel
from transformers import GPT2Model as TheirModel

from engine.errors import InputError
from engine.hub import load_gpt2
from engine.mapped_weights import mapped_gpt2
from models.base_gpt import read_config

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
