"""SOAP against its formula in NumPy, Adam on the identity's axes, and rotated quadratics."""

import math

import numpy as np
import pytest
import torch
from matrix_runs import gradients, model_with_head, step, weights_after
from technique_cases import Tried
from torch import nn

from engine.errors import InputError
from engine.fast.adamw import FusedAdamW
from extensions.soap import Soap, SoapExtension, eigenvalues, eigenvectors, power_iteration

TRIED = {"soap": Tried(varied=["every=2,beta1=0.8,beta2=0.7,max_dim=32"])}


@pytest.fixture
def model():
    return model_with_head()


def trajectory(grads, *, lr=0.1, weight_decay=0.0, **options) -> list[torch.Tensor]:
    options = SoapExtension(**options)
    return weights_after(grads, lambda w: Soap(w, options, lr=lr, weight_decay=weight_decay))


def by_formula(grads, *, lr, weight_decay, every, beta1, beta2, max_dim):
    """The head of extensions/soap.py in NumPy."""
    weight = np.full(grads[0].shape, 0.1)
    mean = square = np.zeros(weight.shape)
    grams, bases, weights = [0.0, 0.0], [np.eye(n) for n in weight.shape], []
    sides = [i for i in (0, 1) if weight.shape[i] <= max_dim]
    for t, grad in enumerate(g.numpy() for g in grads):
        if t > 0:
            turned = bases[0].T @ grad @ bases[1]
            mean = beta1 * mean + (1 - beta1) * grad
            square = beta2 * square + (1 - beta2) * turned**2
            direction = (bases[0].T @ mean @ bases[1]) / (np.sqrt(square) + 1e-6)
            rate = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
            weight = weight - rate * bases[0] @ direction @ bases[1].T
            weight = weight - lr * weight_decay * weight
        outer = (grad @ grad.T, grad.T @ grad)
        grams = [beta2 * x + (1 - beta2) * y for x, y in zip(grams, outer, strict=True)]
        for i in sides:
            if t == 0:
                bases[i] = np.linalg.svd(grams[i])[0]
            elif t % every == 0:
                order = np.argsort(-np.diag(bases[i].T @ grams[i] @ bases[i]))
                square = np.take(square, order, axis=i)
                bases[i] = np.linalg.qr(grams[i] @ bases[i][:, order])[0]
        weights.append(torch.from_numpy(weight))
    return weights


# -- the bases ---------------------------------------------------------------------------------


def random_gram(size: int) -> torch.Tensor:
    torch.manual_seed(size)
    x = torch.randn(size, size, dtype=torch.float64)
    return x @ x.T


def test_power_iterations_turn_any_basis_into_the_eigenvectors():
    gram = random_gram(5)
    basis, off_diagonal = torch.eye(5, dtype=torch.float64), []
    for _ in range(60):
        basis = power_iteration(gram, basis)
        torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
        seen = basis.T @ gram @ basis
        off_diagonal.append(float((seen - seen.diagonal().diag()).norm()))
    assert off_diagonal[-1] < 1e-3 * off_diagonal[0]
    found = eigenvalues(gram, basis)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(gram).flip(0), atol=1e-3, rtol=1e-3)


def test_the_first_basis_has_the_largest_eigenvalue_first():
    gram = random_gram(6)
    found = eigenvalues(gram, eigenvectors(gram))
    torch.testing.assert_close(found, torch.linalg.eigvalsh(gram).flip(0))


# -- the optimizer -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape, max_dim", [((5, 5), 9), ((4, 6), 4), ((6, 4), 4), ((5, 5), 1)])
@pytest.mark.parametrize(
    "options", [{"every": 1}, {"every": 2, "beta1": 0.8, "beta2": 0.7}, {"beta1": 0.0}], ids=str
)
def test_the_trajectory_is_the_formula_s(shape, max_dim, options):
    """A side with more axes than its first gradient has directions would leave some open."""
    grads = gradients(shape, 9)
    how = {"lr": 0.1, "weight_decay": 0.2, "max_dim": max_dim}
    expected = by_formula(grads, **{**vars(SoapExtension()), **how, **options})
    for found, wanted in zip(trajectory(grads, **how, **options), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_first_gradient_moves_nothing():
    first, second = trajectory(gradients((4, 6), 2), weight_decay=0.5)
    assert torch.equal(first, torch.full((4, 6), 0.1, dtype=torch.float64))
    assert not torch.equal(first, second)


def test_on_the_identity_s_axes_it_is_the_project_s_adamw():
    grads = gradients((4, 6), 8)
    ours, theirs = (nn.Parameter(torch.full_like(grads[0], 0.1)) for _ in range(2))
    soap = Soap([ours], SoapExtension(every=100), lr=0.1, weight_decay=0.2)
    adamw = FusedAdamW([theirs], lr=0.1, betas=(0.95, 0.95), weight_decay=0.2)
    ours.grad = grads[0]
    soap.step()
    soap.state[ours]["bases"] = [torch.eye(n, dtype=torch.float64) for n in (4, 6)]
    for grad in grads[1:]:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        soap.step()
        adamw.step()
        torch.testing.assert_close(ours, theirs)
    assert (ours - 0.1).abs().max() > 0.1


def losses_on_a_quadratic(make_optimizer, *, rotated: bool) -> list[float]:
    """½ ⟨W, H W K⟩ from a fixed start, H and K steep along some axes, those of W or others."""
    torch.manual_seed(2)
    turns = [torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q for _ in range(2)]
    start = torch.randn(5, 5, dtype=torch.float64)
    left, right = turns if rotated else (torch.eye(5, dtype=torch.float64),) * 2
    steep = torch.diag(torch.logspace(0, 2, 5, dtype=torch.float64))
    h, k = left @ steep @ left.T, right @ steep @ right.T
    weight = nn.Parameter(left @ start @ right.T)
    optimizer, losses = make_optimizer(weight), []
    for _ in range(150):
        optimizer.zero_grad()
        loss = 0.5 * (weight * (h @ weight @ k)).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_quadratic_with_rotated_axes_falls_as_the_unrotated_one():
    def soap(weight):
        return Soap([weight], SoapExtension(every=2), lr=0.05)

    plain, rotated = (losses_on_a_quadratic(soap, rotated=r) for r in (False, True))
    assert rotated == pytest.approx(plain, rel=1e-3)
    assert rotated[-1] < 1e-3 * rotated[0]

    def adamw(weight):
        return FusedAdamW([weight], lr=0.05, betas=(0.95, 0.95))

    plain, rotated = (losses_on_a_quadratic(adamw, rotated=r) for r in (False, True))
    assert rotated[-1] > 3 * plain[-1]


# -- what it covers ----------------------------------------------------------------------------


def test_no_side_longer_than_max_dim_gets_a_basis(model):
    optimizer = SoapExtension(max_dim=16).make_optimizer(model, 0.1, 0.0)
    assert "head.weight" in optimizer.coverage["soap"]
    step(model, optimizer, seed=1)
    state = optimizer.state[model.gpt.gpt_layers[0].interm_dense.weight]
    assert [q if q is None else len(q) for q in state["bases"]] == [None, 16]
    state = optimizer.state[model.gpt.word_embedding.weight]
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    with pytest.raises(InputError, match="a side of at most max_dim=15"):
        SoapExtension(max_dim=15).make_optimizer(model, 0.1, 0.0)


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 2])
def test_a_gradient_that_is_not_finite_is_refused(when):
    grads = gradients((3, 4), 4)
    grads[when][1, 2] = math.nan
    with pytest.raises(InputError, match="a gradient is not finite: give a smaller --lr"):
        trajectory(grads, every=3)


@pytest.mark.parametrize("options", [{"every": 0}, {"max_dim": 0}, {"beta1": 1.0}, {"beta2": -0.1}])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"soap: .*expected"):
        SoapExtension(**options)
