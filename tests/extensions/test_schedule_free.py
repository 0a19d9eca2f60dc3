"""Schedule-free AdamW against algorithm 1 in NumPy, and against numbers of the published code."""

import numpy as np
import pytest
import torch
from matrix_runs import gradients, waves
from technique_cases import Tried
from tiny_run import Averager, run, run_path
from torch import nn

from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.extension import Extension, apply_extensions
from extensions.ema import ExponentialAverage
from extensions.schedule_free import ScheduleFree, ScheduleFreeExtension

TRIED = {"schedule_free": Tried(varied=["beta1=0.6,beta2=0.9,eps=1e-6"])}


def trajectory(grads, rates, *, weight_decay, betas):
    """y and x after each step, and y again after the look at x."""
    weight = nn.Parameter(torch.full_like(grads[0], 0.1))
    optimizer = ScheduleFree([weight], lr=1.0, weight_decay=weight_decay, betas=betas, eps=1e-8)
    seen = []
    for grad, rate in zip(grads, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = grad.clone()
        optimizer.step()
        y = weight.detach().clone()
        with optimizer.at_average():
            seen.append((y, weight.detach().clone()))
        assert torch.equal(weight.detach(), y)
    return [torch.stack(one) for one in zip(*seen, strict=True)]


def by_formula(grads, rates, *, weight_decay, betas):
    """The head of extensions/schedule_free.py in NumPy, with x and z of its own."""
    (beta1, beta2), seen = betas, []
    x = z = np.full(grads[0].shape, 0.1)
    square, total = 0.0, 0.0
    y = (1 - beta1) * z + beta1 * x
    for t, (grad, rate) in enumerate(zip((g.numpy() for g in grads), rates, strict=True), start=1):
        square = beta2 * square + (1 - beta2) * grad**2
        z = z - rate * grad / (np.sqrt(square / (1 - beta2**t)) + 1e-8) - rate * weight_decay * y
        total += rate**2
        c = rate**2 / total if rate else 0.0
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x
        seen.append((y, x))
    return [torch.from_numpy(np.stack(one)) for one in zip(*seen, strict=True)]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.6, 0.9)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("rates", [[0.1] * 6, [0.0, 0.05, 0.1, 0.1, 0.05, 0.0]], ids=str)
def test_both_trajectories_are_the_formula_s(betas, weight_decay, rates):
    grads = gradients((4, 6), len(rates))
    found = trajectory(grads, rates, weight_decay=weight_decay, betas=betas)
    expected = by_formula(grads, rates, weight_decay=weight_decay, betas=betas)
    torch.testing.assert_close(found, expected)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_it_is_where_the_published_code_was():
    """schedulefree 1.4.1's AdamWScheduleFree, in float64, after eight steps, four of warm-up."""
    rates = [0.1 * min(1, t / 4) for t in range(1, 9)]
    found = trajectory(waves(8), rates, weight_decay=0.3, betas=(0.9, 0.99))
    expected = [
        [[0.0853005931, 0.1394680255, 0.068386683], [0.096477129, 0.0499264255, 0.0359466352]],
        [[0.0864605989, 0.154865241, 0.0645915449], [0.093225841, 0.0399797888, 0.0210724504]],
    ]
    found = torch.stack([one[-1] for one in found])
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )


class Trace(Extension):
    """Remembers the weights after each step, and those of each evaluation."""

    def __init__(self):
        self.trained, self.judged = [], []

    def after_step(self, model):
        self.trained.append(model.head.weight.detach().clone())

    def evaluated(self, model):
        self.judged.append(model.head.weight.detach().clone())
        return super().evaluated(model)


def test_training_is_at_y_and_x_is_judged_and_kept(tmp_path):
    technique, trace, model = ScheduleFreeExtension(), Trace(), Averager()
    apply_extensions(model, [technique])
    run(model, tmp_path, extensions=[technique, trace], epochs=1)
    kept = load_tree(run_path(tmp_path, "*/best.safetensors"))["model"]["head.weight"]
    z = technique.optimizer.state[model.head.weight]["z"]
    x = (trace.trained[-1] - 0.1 * z) / 0.9
    assert torch.equal(kept, trace.judged[-1])
    torch.testing.assert_close(kept, x)
    assert (kept - trace.trained[-1]).abs().max() > 1e-4


def test_a_second_average_of_the_weights_is_refused():
    with pytest.raises(InputError, match="leave out ema and swa"):
        apply_extensions(Averager(), [ScheduleFreeExtension(), ExponentialAverage()])


@pytest.mark.parametrize("options", [{"beta1": 0.0}, {"beta2": 1.0}, {"eps": 0.0}])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"schedule_free: .*expected"):
        ScheduleFreeExtension(**options)
