"""SAM: the ascent by hand, the step it leads to, and the runs that it must not change."""

import math

import pytest
import torch
from technique_cases import Tried
from tiny_run import Averager, run, summed_loss
from torch import nn

from engine.errors import InputError
from engine.extension import apply_extensions
from extensions.sam import SMALL, SharpnessAware, climbed

TRIED = {"sam": Tried(varied=["radius=0.5,adaptive=true"])}


class Bowl(nn.Module):
    """f = ½ Σ a w², whose gradient is a w."""

    def __init__(self, curvatures, weights):
        super().__init__()
        self.a = torch.tensor(curvatures, dtype=torch.float64)
        self.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def backward(self) -> torch.Tensor:
        self.weight.grad = None
        (self.a * self.weight**2).sum().div(2).backward()
        return self.weight.grad


def test_on_a_quadratic_the_gradient_is_that_of_the_point_uphill():
    bowl = Bowl([1.0, 4.0], [3.0, 1.0])  # g = (3, 4), of length 5
    bowl.backward()
    with climbed(bowl, radius=0.5, adaptive=False):
        torch.testing.assert_close(bowl.weight.tolist(), [3.0 + 0.3, 1.0 + 0.4])
        grad = bowl.backward()
    torch.testing.assert_close(grad.tolist(), [3.3, 5.6])
    assert bowl.weight.tolist() == [3.0, 1.0]


def test_the_adaptive_ascent_on_a_quadratic():
    bowl = Bowl([1.0, 4.0], [3.0, -1.0])
    t, g = (3 + SMALL, 1 + SMALL), bowl.backward().tolist()
    norm = math.hypot(t[0] * g[0], t[1] * g[1])
    with climbed(bowl, radius=0.5, adaptive=True):
        found = (bowl.weight.detach() - torch.tensor([3.0, -1.0])).tolist()
    torch.testing.assert_close(found, [0.5 * t[i] ** 2 * g[i] / norm for i in (0, 1)])


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_the_ascent_has_the_radius_as_length_over_all_weights_at_any_loss_scale(scale):
    model = Averager()
    for param in model.parameters():
        param.grad = scale * torch.randn_like(param)
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    with climbed(model, radius=0.05, adaptive=False):
        way = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        assert float(way.norm()) == pytest.approx(0.05, rel=1e-4)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


def worst_loss(scale: float, adaptive: bool) -> float:
    """Of y = v · (u x) uphill, u multiplied and v divided by the same number."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[1].weight.div_(scale)
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)

    def loss():
        return (net(x) - 1).square().mean()

    loss().backward()
    with climbed(net, 0.1, adaptive):
        return float(loss().detach())


def test_rescaled_layers_have_the_same_neighbourhood_only_in_the_adaptive_form(monkeypatch):
    monkeypatch.setattr("extensions.sam.SMALL", 0.0)
    assert worst_loss(10.0, adaptive=True) == pytest.approx(worst_loss(1.0, adaptive=True))
    assert worst_loss(10.0, adaptive=False) != pytest.approx(worst_loss(1.0, adaptive=False))


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
@pytest.mark.parametrize("adaptive", [False, True])
def test_without_a_direction_nothing_moves(value, adaptive):
    """Gradients that are 0, or overflowed in float16."""
    bowl = Bowl([1.0, 4.0], [3.0, 1.0])
    bowl.weight.grad = torch.tensor([value, value and 1.0], dtype=torch.float64)
    with climbed(bowl, 0.5, adaptive):
        assert bowl.weight.tolist() == [3.0, 1.0]


def trained(tmp_path, *extensions, **options):
    model = Averager()
    apply_extensions(model, extensions)
    progress = run(model, tmp_path, extensions=model.extensions, **options)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), progress


def test_with_radius_0_it_is_the_plain_run_bit_for_bit(tmp_path):
    plain, _ = trained(tmp_path / "plain", epochs=2)
    zero, _ = trained(tmp_path / "zero", SharpnessAware(radius=0.0), epochs=2)
    small, _ = trained(tmp_path / "small", SharpnessAware(radius=0.05), epochs=2)
    assert torch.equal(plain, zero) and not torch.equal(plain, small)


def test_a_step_cut_into_batches_climbs_once_by_the_gradient_of_all(tmp_path):
    technique = SharpnessAware(radius=0.5)
    whole, one = trained(tmp_path / "whole", technique, batch_size=12)
    cut, other = trained(tmp_path / "cut", technique, batch_size=3, accumulate=4)
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-5)
    assert other.loss == pytest.approx(one.loss) and other.correct == one.correct


def test_the_figures_are_those_of_the_model_s_own_weights(tmp_path):
    _, plain = trained(tmp_path / "plain", batch_size=12)
    _, sharp = trained(tmp_path / "sharp", SharpnessAware(radius=0.5), batch_size=12)
    assert sharp.loss == plain.loss and sharp.targets == plain.targets


def test_when_memory_runs_out_uphill_the_step_begins_anew_from_the_model_s_own_weights(tmp_path):
    calls = []

    def short_of_memory(logits, batch):
        calls.append(len(batch["labels"]))
        if len(calls) == 2:  # the pass uphill
            raise torch.OutOfMemoryError("CUDA out of memory")
        return summed_loss(logits, batch)

    technique = SharpnessAware(radius=0.5)
    whole, _ = trained(tmp_path / "whole", technique, batch_size=12)
    short, _ = trained(tmp_path / "short", technique, batch_size=12, loss_fn=short_of_memory)
    assert calls == [12, 12, 6, 6, 6, 6]
    torch.testing.assert_close(short, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("radius", [-0.1, math.inf, math.nan])
def test_a_wrong_radius_is_refused(radius):
    with pytest.raises(InputError, match="expected a finite one of at least 0"):
        SharpnessAware(radius=radius)
