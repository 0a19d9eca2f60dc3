"""Layer-wise learning-rate decay gives each depth the formula's rate, and AdamW the rest."""

import pytest
import torch
from matrix_runs import model_with_head
from technique_cases import Tried

from engine.errors import InputError
from engine.fast.adamw import FusedAdamW
from extensions.llrd import LayerwiseDecay, depth

TRIED = {"llrd": Tried(varied=["decay=0.5", "decay=1"])}


@pytest.fixture
def model():
    return model_with_head(layers=3)


def rates(model, optimizer) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}


def test_each_depth_has_its_own_rate(model):
    found = rates(model, LayerwiseDecay(decay=0.5).make_optimizer(model, 0.8, 0.1))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert found["head.weight"] == found["gpt.final_layer_norm.bias"] == 0.8
    for layer, rate in enumerate((0.1, 0.2, 0.4)):
        [of_layer] = {rate for name, rate in found.items() if f"gpt_layers.{layer}." in name}
        assert of_layer == pytest.approx(rate)
    assert found["gpt.word_embedding.weight"] == pytest.approx(0.05)
    assert found["gpt.pos_embedding.weight"] == pytest.approx(0.05)


def test_without_decay_it_is_adamw(model):
    copy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ends = []
    for make in (
        lambda: LayerwiseDecay(decay=1.0).make_optimizer(model, 0.1, 0.2),
        lambda: FusedAdamW(model.parameters(), lr=0.1, weight_decay=0.2),
    ):
        model.load_state_dict(copy)
        optimizer = make()
        for step in range(3):
            optimizer.zero_grad()
            hidden = model.gpt(torch.tensor([[1, 2, step]]))["last_token"]
            model.head(hidden).square().sum().backward()
            optimizer.step()
        ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in copy)


def test_frozen_parameters_are_left_out(model):
    model.gpt.word_embedding.requires_grad_(False)
    found = rates(model, LayerwiseDecay().make_optimizer(model, 1.0, 0.0))
    assert "gpt.word_embedding.weight" not in found


def test_names_inside_an_adapter_count_by_their_layer():
    assert depth("gpt.gpt_layers.1.self_attention.query.A.weight", 4) == 3
    assert depth("gpt.word_embedding.weight", 4) == 5
    assert depth("sentiment_head.bias", 4) == 0


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1, float("nan")])
def test_an_invalid_decay_is_refused(decay):
    with pytest.raises(InputError, match="expected more than 0 and at most 1"):
        LayerwiseDecay(decay=decay)
