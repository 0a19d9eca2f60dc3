"""Sophia-H against its formula in NumPy; its curvature against Hessians that autograd gives."""

import numpy as np
import pytest
import torch
from matrix_runs import gradients
from technique_cases import Tried
from tiny_run import tiny_classifier
from torch import nn

from engine.errors import InputError
from engine.extension import apply_extensions
from extensions.flash_attention import FlashAttention
from extensions.sophia import Sophia, SophiaExtension, curvature, summed_loss

TRIED = {"sophia": Tried(lr="3e-3", varied=["every=2,gamma=0.05,beta1=0.8,beta2=0.7,eps=1e-8"])}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_trajectory_is_the_formula_s(every, weight_decay):
    """Given products u ∘ (H u) of two parts of each step, negative ones among them."""
    grads, products = gradients((4, 6), 7), gradients((14, 4, 6), 1)[0]
    weight = nn.Parameter(torch.full_like(grads[0], 0.1))
    options = {"every": every, "gamma": 5.0, "betas": (0.9, 0.8), "eps": 1e-12}
    optimizer = Sophia([weight], lr=0.1, weight_decay=weight_decay, **options)
    expected, mean, hessian, clipped = np.full((4, 6), 0.1), 0.0, 0.0, []
    for t, grad in enumerate(grads):
        optimizer.zero_grad()
        assert optimizer.is_due == (t % every == 0)
        mean = 0.9 * mean + 0.1 * grad.numpy()
        if optimizer.is_due:
            for part in products[2 * t : 2 * t + 2]:
                optimizer.note([weight], [part], targets=3)
            hessian = 0.8 * hessian + 0.2 * products[2 * t : 2 * t + 2].sum(dim=0).numpy() / 6
        step = np.clip(mean / np.maximum(5 * hessian, 1e-12), -1, 1)
        clipped.append((np.abs(step) == 1).mean())
        expected = (1 - 0.1 * weight_decay) * expected - 0.1 * step
        weight.grad = grad.clone()
        optimizer.step()
        torch.testing.assert_close(weight.detach(), torch.from_numpy(expected))
    assert min(clipped) > 0 and max(clipped) < 1


def test_of_a_diagonal_quadratic_one_look_is_the_diagonal():
    """u ∘ (D u) = u² ∘ d: with signs in u's place it would be exact; here its mean is."""
    diagonal = torch.tensor([3.0, 0.5, -2.0])
    weight = nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))
    torch.manual_seed(0)
    found = [curvature(lambda: (diagonal * weight**2).sum() / 2, [weight])[0] for _ in range(3000)]
    torch.testing.assert_close(torch.stack(found).mean(dim=0), diagonal, rtol=0.1, atol=0)


def test_the_mean_of_many_looks_is_the_diagonal_of_the_hessian():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, labels = torch.randn(8, 3), torch.arange(8) % 2

    def loss(weight, bias):
        logits = nn.functional.linear(x, weight, bias)
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    params = list(model.parameters())
    looks = [curvature(lambda: loss(*params), params) for _ in range(3000)]
    blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in params))
    for i, param in enumerate(params):
        exact = blocks[i][i].reshape(param.numel(), param.numel()).diagonal().view_as(param)
        found = torch.stack([look[i] for look in looks]).mean(dim=0)
        torch.testing.assert_close(found, exact, rtol=0.1, atol=0.15)


def batch() -> dict:
    tokens = torch.arange(12).view(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    return {"token_ids": tokens, "attention_mask": mask, "labels": torch.tensor([0, 1, 4])}


def test_gpt_2_s_products_are_differences_of_its_gradients():
    """H u ≈ (∇L(θ + r u) − ∇L(θ − r u)) / 2r, in float64."""
    model = tiny_classifier().double().eval()
    params = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(5)
    found = curvature(lambda: summed_loss(model, batch()), params)
    torch.manual_seed(5)
    directions = [torch.randn_like(p) for p in params]

    def gradient(reach: float):
        with torch.no_grad():
            torch._foreach_add_(params, directions, alpha=reach)
        grads = torch.autograd.grad(summed_loss(model, batch()), params, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_add_(params, directions, alpha=-reach)
        return grads

    ahead, behind = gradient(1e-5), gradient(-1e-5)
    for u, one, other, product in zip(directions, ahead, behind, found, strict=True):
        difference = u * (one - other) / 2e-5
        torch.testing.assert_close(product, difference, rtol=1e-3, atol=1e-4)


def test_it_looks_every_k_steps_and_at_all_parts_of_a_step():
    model, technique = tiny_classifier(), SophiaExtension(every=2)
    optimizer = technique.make_optimizer(model, 1e-3, 0.0)
    looks = []
    for _ in range(4):
        optimizer.zero_grad()
        for _ in range(2):
            technique.before_backward(model, batch())
            summed_loss(model, batch()).backward()
        looks.append((len(optimizer.sums) > 0, optimizer.targets))
        optimizer.step()
    assert looks == [(True, 6), (False, 0)] * 2
    assert all(bool(state["hessian"].abs().sum() > 0) for state in optimizer.state.values())


def test_attention_without_a_second_derivative_is_refused():
    model = tiny_classifier()
    apply_extensions(model, [FlashAttention(block=16)])
    technique = SophiaExtension()
    technique.make_optimizer(model, 1e-3, 0.0)
    with pytest.raises(InputError, match=r"no second derivative: .*flash_attention"):
        technique.before_backward(model, batch())


@pytest.mark.parametrize("options", [{"every": 0}, {"beta1": 1.0}, {"gamma": 0.0}, {"eps": -1.0}])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"sophia: .*expected"):
        SophiaExtension(**options)
