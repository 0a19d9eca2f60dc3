"""Shampoo against its formula in NumPy, diagonal Adagrad, and rotations of rows and columns."""

import math

import numpy as np
import pytest
import torch
from matrix_runs import gradients, model_with_head, step, weights_after
from technique_cases import Tried
from torch import nn

from engine.errors import InputError
from engine.fast.adamw import FusedAdamW
from extensions.shampoo import Shampoo, ShampooExtension, inverse_root

TRIED = {
    "shampoo": Tried(
        varied=["every=3,decay=1,momentum=0,ridge=1e-4,graft=false,max_dim=32", "every=1,decay=0.9"]
    )
}

PAPER = {"decay": 1.0, "momentum": 0.0, "graft": False, "every": 1}


@pytest.fixture
def model():
    return model_with_head()


def trajectory(grads, *, lr=0.1, weight_decay=0.0, **options) -> list[torch.Tensor]:
    options = ShampooExtension(**options)
    return weights_after(grads, lambda w: Shampoo(w, options, lr=lr, weight_decay=weight_decay))


def by_formula(grads, *, lr, weight_decay, every, decay, momentum, ridge, graft, max_dim):
    """The head of extensions/shampoo.py in NumPy, roots by singular value decomposition."""
    weight = np.full(grads[0].shape, 0.1)
    left, right, mean, square = 0.0, 0.0, 0.0, 0.0
    sides = sum(n <= max_dim for n in weight.shape)
    weights = []
    for t, grad in enumerate((g.numpy() for g in grads), start=1):
        share = 1.0 if decay == 1 else 1 - decay
        left, right = decay * left + share * grad @ grad.T, decay * right + share * grad.T @ grad
        if t % every == 1 or every == 1:
            roots = []
            for gram in (left, right):
                u, values, _ = np.linalg.svd(gram / (1 if decay == 1 else 1 - decay**t))
                values = (values + ridge * values[0]) ** (-1 / (2 * sides))
                roots.append(u * values @ u.T if len(gram) <= max_dim else np.eye(len(gram)))
        mean = momentum * mean + (1 - momentum) * grad
        square = 0.999 * square + 0.001 * grad**2
        direction = roots[0] @ (mean / (1 - momentum**t)) @ roots[1]
        if graft:
            adamw = math.sqrt(1 - 0.999**t) / (1 - momentum**t) * mean / (np.sqrt(square) + 1e-6)
            direction *= np.linalg.norm(adamw) / np.linalg.norm(direction)
        weight = weight - lr * direction
        weight = weight - lr * weight_decay * weight
        weights.append(torch.from_numpy(weight))
    return weights


# -- the root ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("size", [1, 5, 20])
def test_the_fourth_power_of_the_inverse_fourth_root_is_the_inverse(size, dtype, tolerance):
    torch.manual_seed(size)
    x = torch.randn(size, 2 * size, dtype=dtype)
    x = x @ x.T / size
    root = inverse_root(x, 1 / 4, 1e-12)
    identity = torch.eye(size, dtype=dtype)
    found = torch.linalg.matrix_power(root, 4) @ x
    torch.testing.assert_close(found, identity, atol=tolerance, rtol=0)
    found = torch.linalg.matrix_power(inverse_root(x, 1 / 2, 1e-12), 2) @ x
    torch.testing.assert_close(found, identity, atol=tolerance, rtol=0)


def test_the_ridge_bounds_the_root_where_the_matrix_is_singular():
    vector = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    values = torch.linalg.eigvalsh(inverse_root(vector @ vector.T, 1 / 4, 1e-4))
    torch.testing.assert_close(values, torch.tensor([25.0025, 0.0025]).double() ** -0.25)


def test_the_root_of_nothing_is_the_identity():
    torch.testing.assert_close(inverse_root(torch.zeros(3, 3), 1 / 4, 1e-6), torch.eye(3))


# -- the optimizer -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (1, 5)])
@pytest.mark.parametrize(
    "options",
    [PAPER, {}, {"every": 3, "decay": 0.9, "momentum": 0.8}, {"graft": False}, {"max_dim": 4}],
    ids=str,
)
def test_the_trajectory_is_the_formula_s(shape, options):
    grads = gradients(shape, 7)
    how = {"lr": 0.1, "weight_decay": 0.2, "ridge": 1e-4}
    defaults = vars(ShampooExtension())
    expected = by_formula(grads, **{**defaults, **how, **options})
    for found, wanted in zip(trajectory(grads, **how, **options), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_on_diagonal_gradients_it_is_diagonal_adagrad():
    rows = gradients((5,), 6)
    ours = trajectory([torch.diag(row) for row in rows], ridge=1e-14, **PAPER)
    theirs = nn.Parameter(torch.full((5,), 0.1, dtype=torch.float64))
    adagrad = torch.optim.Adagrad([theirs], lr=0.1, eps=0.0)
    for row, found in zip(rows, ours, strict=True):
        theirs.grad = row.clone()
        adagrad.step()
        torch.testing.assert_close(found.diagonal(), theirs.detach())
        assert (found - torch.diag(found.diagonal())).unique().tolist() == [0.0, 0.1]


@pytest.mark.parametrize("options", [PAPER, {"graft": False, "every": 2}], ids=str)
def test_rotated_rows_and_columns_give_the_rotated_step(options):
    grads = gradients((5, 5), 5)
    torch.manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q for _ in range(2))
    plain = trajectory(grads, **options)
    turned = trajectory([left @ grad @ right.T for grad in grads], **options)
    for one, two in zip(plain, turned, strict=True):
        torch.testing.assert_close(two - 0.1, left @ (one - 0.1) @ right.T)


def test_a_step_is_as_long_as_adamw_s():
    grads = gradients((4, 6), 5)
    theirs = nn.Parameter(torch.full_like(grads[0], 0.1))
    adamw = FusedAdamW([theirs], lr=0.1)
    before = ours = torch.full_like(grads[0], 0.1)
    for grad, after in zip(grads, trajectory(grads), strict=True):
        start = theirs.detach().clone()
        theirs.grad = grad
        adamw.step()
        ours, before = after - before, after
        theirs_moved = theirs.detach() - start
        torch.testing.assert_close(ours.norm(), theirs_moved.norm())
        assert (ours - theirs_moved).norm() > 0.1 * ours.norm()


# -- what it covers ----------------------------------------------------------------------------


def test_no_side_longer_than_max_dim_gets_a_preconditioner(model):
    optimizer = ShampooExtension(max_dim=16).make_optimizer(model, 0.1, 0.0)
    assert "head.weight" in optimizer.coverage["shampoo"]
    step(model, optimizer, seed=1)
    layer = model.gpt.gpt_layers[0]
    sides = [g if g is None else len(g) for g in optimizer.state[layer.out_dense.weight]["grams"]]
    assert sides == [16, None]
    state = optimizer.state[model.gpt.word_embedding.weight]
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    with pytest.raises(InputError, match="a side of at most max_dim=15"):
        ShampooExtension(max_dim=15).make_optimizer(model, 0.1, 0.0)


# -- mistakes ----------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_is_refused():
    grad = torch.ones(3, 4, dtype=torch.float64)
    grad[1, 2] = math.inf
    with pytest.raises(InputError, match="a gradient is not finite: give a smaller --lr"):
        trajectory([grad])


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"max_dim": 0},
        {"decay": 0.0},
        {"decay": 1.1},
        {"momentum": 1.0},
        {"ridge": 0.0},
        {"ridge": math.nan},
    ],
)
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"shampoo: .*expected"):
        ShampooExtension(**options)
