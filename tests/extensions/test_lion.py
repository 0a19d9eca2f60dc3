"""Lion against its formula in NumPy, and against numbers of the published code."""

import numpy as np
import pytest
import torch
from matrix_runs import gradients, waves, weights_after
from technique_cases import Tried

from engine.errors import InputError
from extensions.lion import Lion, LionExtension

TRIED = {"lion": Tried(lr="3e-3", varied=["beta1=0.5,beta2=0.8"])}


def trajectory(grads, *, lr, weight_decay, betas) -> torch.Tensor:
    make = lambda w: Lion(w, lr=lr, weight_decay=weight_decay, betas=betas)  # noqa: E731
    return torch.stack(weights_after(grads, make))


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.8), (0.0, 0.0)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_trajectory_is_the_formula_s(betas, weight_decay):
    grads = gradients((4, 6), 7)
    weight, mean, expected = np.full((4, 6), 0.1), np.zeros((4, 6)), []
    for grad in (g.numpy() for g in grads):
        direction = np.sign(betas[0] * mean + (1 - betas[0]) * grad)
        weight = weight - 0.1 * (direction + weight_decay * weight)
        mean = betas[1] * mean + (1 - betas[1]) * grad
        expected.append(weight)
    found = trajectory(grads, lr=0.1, weight_decay=weight_decay, betas=betas)
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)))


def test_it_is_where_the_published_code_was():
    """lion-pytorch 0.2.5, in float64, after eight steps."""
    expected = [
        [-0.1106481696, -0.1111411655, 0.0030317519],
        [0.0893518304, 0.0838300364, 0.2678898373],
    ]
    found = trajectory(waves(8), lr=0.1, weight_decay=0.3, betas=(0.9, 0.99))[-1]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_a_zero_gradient_moves_nothing():
    zeros = [torch.zeros(2, 3)] * 2
    found = trajectory(zeros, lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))
    assert torch.equal(found, torch.full((2, 2, 3), 0.1))


@pytest.mark.parametrize("options", [{"beta1": 1.0}, {"beta2": -0.1}])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"lion: .*expected both in"):
        LionExtension(**options)
