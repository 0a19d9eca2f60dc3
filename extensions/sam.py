"""Sharpness-aware minimisation: a step down the gradient of the worst point nearby.

    g = ∇L(w),    ê = ρ g / ‖g‖₂                    Foret et al. 2021, eq. 2, with p = 2
    w ← w − the optimizer's step for ∇L(w + ê)      eq. 3 and algorithm 1
    ê = ρ T² g / ‖T g‖₂,    T = |w| + η             adaptive: Kwon et al. 2021, eq. 8

The norm is taken over all trained weights. T scales each weight's way by its size, so that the
neighbourhood does not change where one layer is multiplied and the next one divided; as in the
published code it is 1 for biases. ρ of the adaptive form is about ten times the other's. A step
takes two passes, whose dropout masks differ, and a copy of the trained weights. Differs from the
paper in that several workers climb together, from the gradient of the whole batch, and not each
from its own part's.

    python classifier.py --fine-tune-mode full-model --extension sam:radius=0.05
"""

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import nn

from engine.errors import InputError
from engine.extension import Extension

SMALL = 0.01  # η: small weights can move, too


@dataclass
class SharpnessAware(Extension):
    """radius: ρ, the length of the ascent; adaptive: in units of the weights' own sizes."""

    radius: float = 0.05
    adaptive: bool = False

    recordable = True

    def __post_init__(self):
        if not 0 <= self.radius < math.inf:
            raise InputError(f"sam: radius={self.radius}: expected a finite one of at least 0")

    def differentiated(self, model):
        return climbed(model, self.radius, self.adaptive) if self.radius else None


@contextlib.contextmanager
def climbed(model: nn.Module, radius: float, adaptive: bool):
    """The weights are w + ê meanwhile; afterwards they are back, bit for bit."""
    weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
    own = [p.detach().clone() for p in weights.values()]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(weights.values()), ascent(weights, radius, adaptive))
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights.values()), own)


@torch.no_grad()
def ascent(weights: dict[str, torch.Tensor], radius: float, adaptive: bool) -> list[torch.Tensor]:
    """ê of weights with gradients, by name; 0 everywhere if those are all 0, or one not finite."""
    sizes = [p.abs() + SMALL if has_size(name) and adaptive else 1.0 for name, p in weights.items()]
    scaled = [p.grad * t for p, t in zip(weights.values(), sizes, strict=True)]
    norm = torch.stack([g.norm() for g in scaled]).norm()
    climbs = norm.isfinite() & (norm > 0)
    return [
        torch.where(climbs, g * t * (radius / norm), 0.0)
        for g, t in zip(scaled, sizes, strict=True)
    ]


def has_size(name: str) -> bool:
    """Whether a parameter's numbers multiply, so that their size has a meaning."""
    return not name.endswith("bias")
