"""Sophia-H against NumPy and published trajectories; its curvature against autograd's Hessians."""

import numpy as np
import pytest
import torch
from matrix_runs import gradients, waves
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


# In float64, at η 0.1, λ 0.3, γ 2 and β (0.9, 0.8): the weights (2, 3) after eight steps, by how
# many steps there are from look to look. ĥ of step t is waves(13)[5 + t], or its square.
#
# pytorch-optimizer 4.1.0: SophiaH adds −lr clip(m / max(h, eps), p) and decays by lr and
# weight_decay. This is the formula with lr = η / γ, p = γ, weight_decay = λ γ and eps = ε / γ.
# sophia-opt 0.2.2: the authors' SophiaG, as they published no SophiaH. It differs in the estimate
# of h alone, a squared gradient: it was given waves(13)[5 + t] as that gradient, before the step.
# γ is its rho with bs 1. It adds 1e-15 to γ h where the formula has max(γ h, ε), which is the same
# to more digits than these, since no h is negative.
PUBLISHED = {
    ("pytorch-optimizer", 1): [
        [-0.566532346, -0.0278513849, -0.1294868608],
        [-0.08441432, 0.0781192628, 0.2806551081],
    ],
    ("pytorch-optimizer", 3): [
        [-0.4965723713, -0.100602814, -0.2233743729],
        [0.0893518304, 0.0196702005, 0.2514566425],
    ],
    ("sophia-opt", 1): [
        [-0.2134697383, -0.0495847695, -0.1841902178],
        [0.0423729007, 0.042926997, 0.2794663639],
    ],
    ("sophia-opt", 3): [
        [-0.263631946, -0.1320395158, -0.1869950597],
        [0.0273522008, 0.0380695512, 0.2514566425],
    ],
}


def published_setting(start: torch.Tensor, every: int) -> tuple[nn.Parameter, Sophia]:
    weight = nn.Parameter(start)
    options = {"gamma": 2.0, "betas": (0.9, 0.8), "eps": 1e-12}
    return weight, Sophia([weight], lr=0.1, weight_decay=0.3, every=every, **options)


@pytest.mark.parametrize("package, every", PUBLISHED)
def test_it_is_where_the_published_code_was(package, every):
    start = torch.full((2, 3), 0.1, dtype=torch.float64)
    weight, optimizer = published_setting(start, every)
    looks = [x.square() if package == "sophia-opt" else x for x in waves(13)[5:]]
    for grad, look in zip(waves(8), looks, strict=True):
        optimizer.zero_grad()
        if optimizer.is_due:
            optimizer.note([weight], [look], targets=1)
        weight.grad = grad.clone()
        optimizer.step()
    expected = torch.tensor(PUBLISHED[package, every], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-9, rtol=0)


def test_with_its_own_looks_at_a_loss_it_is_where_the_published_code_was(monkeypatch):
    """pytorch-optimizer 4.1.0 in the setting above, six steps, waves(3) in place of its draws."""
    start = torch.tensor([[1, -1, 2], [-0.5, 0, 0.3]], dtype=torch.float64)
    bent = torch.tensor([[3, 1, -0.5], [1, -1, 0.3], [-0.5, 0.3, 0.2]], dtype=torch.float64)
    weight, optimizer = published_setting(start, every=2)
    draws = iter(waves(3))
    monkeypatch.setattr(torch, "randn_like", lambda _: next(draws))

    def loss() -> torch.Tensor:
        return (weight @ bent * weight).sum() / 2 + (weight**4).sum() / 12

    for _ in range(6):
        optimizer.zero_grad()
        if optimizer.is_due:
            optimizer.note([weight], curvature(loss, [weight]), targets=1)
        loss().backward()
        optimizer.step()
    expected = [
        [0.7353628649, -1.361687787, 1.1091840263],
        [-0.2997615357, 0.5567599836, -0.3068683821],
    ]
    torch.testing.assert_close(
        weight.detach(), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )


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
