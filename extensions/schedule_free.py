"""Schedule-free AdamW: an average of the steps takes the place of a falling learning rate.

    y ← (1 − β₁) z + β₁ x,    g = ∇L(y)                     training is at y
    v ← β₂ v + (1 − β₂) g²,   d = g / (√(v / (1 − β₂ᵗ)) + ε) + λ y
    z ← z − γ_t d
    x ← (1 − c) x + c z,      c = γ_t² / Σ γ_i²             Defazio et al. 2024, algorithm 1

The model holds y; dev figures, the best epoch and the predictions are those of x, which needs no
memory of its own: x = (y − (1 − β₁) z) / β₁, and a step moves y directly:

    y ← (1 − c) y + c z − γ_t (1 − β₁ (1 − c)) d            with z from before the step

γ_t is --lr times the run's schedule: constant, perhaps with --warmup. Differs from the paper in
that vectors do not decay.

    python classifier.py --fine-tune-mode full-model --warmup 0.05 --extension schedule_free
"""

import contextlib
import math
from dataclasses import dataclass

import torch

from engine.errors import InputError
from engine.extension import Extension
from extensions.each_number import EachNumberOptimizer


@dataclass
class ScheduleFreeExtension(Extension):
    """beta1: how far y is from z to x; beta2: of the mean of squares."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    recordable = True

    def __post_init__(self):
        if not (0 < self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 < self.eps < math.inf):
            raise InputError(
                f"schedule_free: beta1={self.beta1}, beta2={self.beta2}, eps={self.eps}: expected "
                f"beta1 in (0, 1), beta2 in [0, 1) and an eps above 0"
            )

    def check(self, model) -> None:
        if hasattr(model, "average"):
            raise InputError("schedule_free: it averages the weights itself: leave out ema and swa")

    def make_optimizer(self, model, lr: float, weight_decay: float):
        trained = [p for p in model.parameters() if p.requires_grad]
        options = {"betas": (self.beta1, self.beta2), "eps": self.eps}
        self.optimizer = ScheduleFree(trained, lr=lr, weight_decay=weight_decay, **options)
        return self.optimizer

    def evaluated(self, model):
        return self.optimizer.at_average()


class ScheduleFree(EachNumberOptimizer):
    def begin(self, param) -> dict:
        return {
            "step": 0,
            "rates": 0.0,  # Σ γ_i²
            "z": param.detach().clone(),
            "exp_avg_sq": torch.zeros_like(param),
        }

    def move(self, param, state: dict, group: dict) -> None:
        (beta1, beta2), rate, grad, z = group["betas"], group["lr"], param.grad, state["z"]
        state["step"] += 1
        state["rates"] += rate**2
        share = rate**2 / state["rates"] if rate else 0.0
        squares = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction = math.sqrt(1 - beta2 ** state["step"])
        change = grad / squares.sqrt().div_(correction).add_(group["eps"])
        if group["weight_decay"]:
            change.add_(param, alpha=group["weight_decay"])
        param.lerp_(z, share).add_(change, alpha=-rate * (1 - beta1 * (1 - share)))
        z.add_(change, alpha=-rate)

    @contextlib.contextmanager
    def at_average(self):
        """x in the place of y; afterwards y is back, bit for bit."""
        own = [
            (param, param.detach().clone(), group["betas"][0])
            for group in self.param_groups
            for param in group["params"]
            if self.state.get(param)
        ]
        try:
            with torch.no_grad():
                for param, _, beta1 in own:
                    param.lerp_(self.state[param]["z"], 1 - 1 / beta1)
            yield
        finally:
            with torch.no_grad():
                for param, y, _ in own:
                    param.copy_(y)
