"""Sophia-H: a step is the momentum over the curvature, and never longer than the learning rate.

    m ← β₁ m + (1 − β₁) g
    every k steps:  h ← β₂ h + (1 − β₂) ĥ,    ĥ = u ∘ (H u),    u ~ Normal(0, I)
    θ ← θ − η λ θ
    θ ← θ − η clip(m / max(γ h, ε), 1)                      Liu et al. 2023, algorithms 1 and 3

H is the Hessian of the loss; H u is the gradient of ⟨∇L, u⟩, so that E ĥ is H's diagonal
(Hutchinson). Where the curvature is small or negative, a number moves by η in the direction of m.
Differs from the paper in that ĥ comes from all rows of its step and not from a part of them; that
its pass is in float32, draws its dropout anew and is of the task's cross-entropy alone, without
what other extensions add to it; and that vectors do not decay.

    python classifier.py --fine-tune-mode full-model --extension sophia:every=10
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.batches import IGNORED_LABEL, count_targets, forward_tokens
from engine.errors import InputError
from engine.extension import Extension
from extensions.each_number import EachNumberOptimizer, decay
from extensions.kfac import all_reduce


@dataclass
class SophiaExtension(Extension):
    """every k: steps between looks at the curvature; gamma γ: the larger, the fewer are clipped."""

    every: int = 10
    gamma: float = 0.01
    beta1: float = 0.96
    beta2: float = 0.99
    eps: float = 1e-12

    def __post_init__(self):
        if self.every < 1 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(
                f"sophia: every={self.every}, beta1={self.beta1}, beta2={self.beta2}: expected "
                f"every at least 1, and betas in [0, 1)"
            )
        if not (0 < self.gamma < math.inf and 0 < self.eps < math.inf):
            raise InputError(f"sophia: gamma={self.gamma}, eps={self.eps}: expected both above 0")

    def make_optimizer(self, model, lr: float, weight_decay: float):
        trained = [p for p in model.parameters() if p.requires_grad]
        options = {"gamma": self.gamma, "betas": (self.beta1, self.beta2), "eps": self.eps}
        self.optimizer = Sophia(
            trained, every=self.every, lr=lr, weight_decay=weight_decay, **options
        )
        return self.optimizer

    def before_backward(self, model, batch: dict) -> None:
        if not self.optimizer.is_due:
            return
        params = [p for p in model.parameters() if p.requires_grad]
        products = curvature(lambda: summed_loss(model, batch), params)
        self.optimizer.note(params, products, count_targets(batch))


def summed_loss(model, batch: dict) -> torch.Tensor:
    """The cross-entropy of a batch, a sum over its targets, by operations that derive twice."""
    with sdpa_kernel(SDPBackend.MATH):
        logits = forward_tokens(model, batch)
    labels = batch["labels"].flatten()
    return F.cross_entropy(
        logits.flatten(0, -2), labels, ignore_index=IGNORED_LABEL, reduction="sum"
    )


def curvature(loss_of, params: list[torch.Tensor]) -> list[torch.Tensor]:
    """u ∘ (H u) of a loss for each parameter, with a u of its own; None: it does not matter."""
    with torch.enable_grad():
        grads = torch.autograd.grad(loss_of(), params, create_graph=True, materialize_grads=True)
        check_twice_differentiable(grads)
        directions = [torch.randn_like(param) for param in params]
        inner = sum((grad * u).sum() for grad, u in zip(grads, directions, strict=True))
        products = torch.autograd.grad(inner, params, materialize_grads=True)
    return [u * product for u, product in zip(directions, products, strict=True)]


def check_twice_differentiable(grads) -> None:
    """Refuse gradients of a `once_differentiable` function, which autograd would take for constant.

    It raises its error only where gradients flow into all leaves of the graph.
    """
    nodes = [grad.grad_fn for grad in grads if grad.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name() == "torch::autograd::Error":
            raise InputError(
                "sophia: a part of this model has no second derivative: leave out the extension "
                "that brought it, as flash_attention"
            )
        following = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= following
        nodes.extend(following)


class Sophia(EachNumberOptimizer):
    """`note` it the curvature of each part of a step that `is_due`, before the step."""

    def __init__(self, params, *, every: int, **options):
        super().__init__(params, every=every, **options)
        self.sums: dict[torch.Tensor, torch.Tensor] = {}  # of u ∘ (H u), by parameter
        self.targets = 0

    @property
    def is_due(self) -> bool:
        """Whether the coming step takes in a new look at the curvature."""
        steps = max((state["step"] for state in self.state.values()), default=0)
        return steps % self.param_groups[0]["every"] == 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.sums, self.targets = {}, 0

    def note(self, params, products, targets: int) -> None:
        """Add one part of a step: u ∘ (H u) of its summed loss, and how many targets it has."""
        for param, product in zip(params, products, strict=True):
            self.sums[param] = self.sums.get(param, 0) + product
        self.targets += targets

    def step(self, closure=None):
        if self.sums:
            targets = next(iter(self.sums.values())).new_tensor(self.targets)
            all_reduce([*self.sums.values(), targets])
            torch._foreach_div_(list(self.sums.values()), targets)
        return super().step(closure)

    def begin(self, param) -> dict:
        zeros = {name: torch.zeros_like(param) for name in ("exp_avg", "hessian")}
        return {"step": 0, **zeros}

    def move(self, param, state: dict, group: dict) -> None:
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(param.grad, 1 - beta1)
        if param in self.sums:
            state["hessian"].lerp_(self.sums[param], 1 - beta2)
        scale = (group["gamma"] * state["hessian"]).clamp_(min=group["eps"])
        decay(param, group)
        param.add_((state["exp_avg"] / scale).clamp_(-1, 1), alpha=-group["lr"])
