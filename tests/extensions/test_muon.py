"""Muon against torch.optim.Muon, its direction against the singular value decomposition."""

import copy

import pytest
import torch
from matrix_runs import model_with_head
from technique_cases import Tried
from torch import nn

from engine.errors import InputError
from extensions.muon import Muon, MuonExtension, newton_schulz

TRIED = {"muon": Tried(varied=["momentum=0,steps=3"])}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """The same numbers on every CPU; one test below is about bfloat16."""
    monkeypatch.setattr("extensions.muon.has_bf16_units", lambda device: False)


@pytest.fixture
def model():
    return model_with_head()


@pytest.mark.parametrize("shape", [(8, 8), (20, 6), (6, 20)])
@pytest.mark.parametrize("momentum", [0.95, 0.5, 0.0])
def test_the_trajectory_is_torch_s(shape, momentum, monkeypatch):
    """torch iterates in bfloat16; here it is kept from rounding."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(shape))
    theirs.data.copy_(ours.data)
    start = ours.detach().clone()
    mine = Muon([ours], MuonExtension(momentum=momentum), lr=0.1)
    other = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(5):
        torch.manual_seed(seed)
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert (ours.detach() - start).norm() > 0.2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(12, 12), (30, 10), (10, 30)])
def test_the_direction_is_nearly_orthogonal_and_the_polar_factor_s(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 50
    [found] = newton_schulz(matrix[None], 5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    cosine = (found * (u @ vt)).sum() / (found.norm() * (u @ vt).norm())
    assert cosine > 0.97
    torch.testing.assert_close(newton_schulz(matrix[None] * 1e-3, 5)[0], found)


@pytest.mark.parametrize("units", [True, False])
def test_it_iterates_in_bfloat16_where_there_are_units(units, monkeypatch):
    monkeypatch.setattr("extensions.muon.has_bf16_units", lambda device: units)
    torch.manual_seed(0)
    matrix = torch.randn(1, 24, 40)
    found, exact = newton_schulz(matrix, 5), newton_schulz(matrix, 5, dtype=torch.float32)
    assert found.dtype == (torch.bfloat16 if units else torch.float32)
    torch.testing.assert_close(found.float(), exact, atol=0.1 if units else 0, rtol=0)


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_a_stack_of_matrices_has_the_bits_of_each_alone(shape):
    torch.manual_seed(0)
    stack = torch.randn(5, *shape) * torch.tensor([1, 1e-3, 50, 0, 2.0])[:, None, None]
    for matrix, found in zip(stack, newton_schulz(stack, 5), strict=True):
        assert torch.equal(found, newton_schulz(matrix[None], 5)[0])


@pytest.mark.parametrize(
    "most, sizes", [(0, [1] * 12), (600, [1] * 4 + [2] * 4), (10**6, [2, 2, 8])]
)
def test_matrices_of_one_shape_move_together_with_the_bits_of_each_alone(
    most, sizes, model, monkeypatch
):
    """Of its two layers, 8 matrices (16, 16), and 2 each of (64, 16) and (16, 64)."""
    together, calls = copy.deepcopy(model), []

    def counted(stack, steps):
        calls.append(len(stack))
        return newton_schulz(stack, steps)

    monkeypatch.setattr("extensions.muon.newton_schulz", counted)
    for one, limit in ((model, 0), (together, most)):
        monkeypatch.setattr("extensions.muon.MOST", {"cpu": limit})
        optimizer = MuonExtension().make_optimizer(one, 0.1, 0.1)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in one.parameters():
                parameter.grad = torch.randn(parameter.shape)
            calls.clear()
            optimizer.step()
    assert sorted(calls) == sorted(sizes)
    assert all(map(torch.equal, together.parameters(), model.parameters()))


def test_a_zero_gradient_moves_nothing():
    weight = nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros(4, 6)
    Muon([weight], MuonExtension(), lr=0.1).step()
    assert torch.equal(weight.detach(), torch.ones(4, 6))


def test_decay_comes_after_the_update_and_is_decoupled():
    weight = nn.Parameter(torch.full((4, 6), 2.0))
    weight.grad = torch.zeros(4, 6)
    Muon([weight], MuonExtension(), lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 6), 1.9))


def test_matrices_of_the_layers_go_to_muon_and_the_rest_to_adamw(model):
    optimizer = MuonExtension().make_optimizer(model, 0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        g["rule"] == "muon": {names[id(p)] for p in g["params"]} for g in optimizer.param_groups
    }
    assert groups[True] | groups[False] == set(names.values())
    assert all("gpt_layers" in name and name.endswith("weight") for name in groups[True])
    assert not any("norm" in name for name in groups[True])
    assert {"gpt.word_embedding.weight", "head.weight", "head.bias"} < groups[False]
    assert len(groups[True]) == 2 * 6


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"steps": 0}, {"steps": 100}])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match="expected a momentum in"):
        MuonExtension(**options)
