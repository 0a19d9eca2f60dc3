"""Muon: a matrix moves by its momentum made orthogonal, so that no direction is favoured.

    M ← μ M + (1 − μ) G,    N = (1 − μ) G + μ M                Jordan et al. 2024, Nesterov's form
    X ← N / ‖N‖_F,  five times  X ← a X + (b X Xᵀ + c (X Xᵀ)²) X        Newton–Schulz, a quintic
    W ← W − lr · 0.2 √max(rows, columns) · X                   Liu et al. 2025, eq. 4
    W ← W − lr λ W

X comes close to U Vᵀ of N = U S Vᵀ; the factor gives the step the size of one of AdamW, so that its
learning rates serve. It is for the matrices of the layers: embeddings, biases, normalisations and
the task's head go to AdamW. Differs from the paper in that decay comes after the update, as in this
project's AdamW, and that the iteration runs in bfloat16 only where a processor has units for it.

    python classifier.py --fine-tune-mode full-model --extension muon
    python pretrain.py --text FILE --out DIR --extension muon
"""

import math
from dataclasses import dataclass

import torch

from engine.devices import has_bf16_units
from engine.errors import InputError
from engine.extension import Extension
from extensions.matrix_optimizer import MatrixOptimizer, check_covered, groups, matrices

QUINTIC = (
    3.4445,
    -4.7750,
    2.0315,
)  # a, b, c: steepest at 0, in exchange for S within about 1 ± 0.3


@dataclass
class MuonExtension(Extension):
    """momentum μ; steps: of Newton–Schulz."""

    momentum: float = 0.95
    steps: int = 5

    recordable = True

    def __post_init__(self):
        if not 0 <= self.momentum < 1 or not 1 <= self.steps < 100:
            raise InputError(
                f"muon: momentum={self.momentum}, steps={self.steps}: expected a momentum in "
                f"[0, 1) and 1 to 99 steps"
            )

    def make_optimizer(self, model, lr: float, weight_decay: float):
        covered = {name: p for name, p in matrices(model).items() if "gpt_layers" in name}
        check_covered(covered, "muon")
        return Muon(groups(model, covered, "muon"), self, lr=lr, weight_decay=weight_decay)


class Muon(MatrixOptimizer):
    """AdamW, in which groups of the rule "muon" move as the formula above says."""

    rule = "muon"

    def direction(self, param, group):
        state, momentum = self.state[param], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        state["momentum"].lerp_(param.grad, 1 - momentum)
        ahead = param.grad.lerp(state["momentum"], momentum)
        orthogonal = newton_schulz(ahead, group["steps"]).to(param.dtype)
        return 0.2 * math.sqrt(max(param.shape)) * orthogonal


def newton_schulz(matrix: torch.Tensor, steps: int, dtype: torch.dtype | None = None):
    """About U Vᵀ of (rows, columns) = U S Vᵀ; dtype: bfloat16 if there are units, else float32."""
    a, b, c = QUINTIC
    fast = torch.bfloat16 if has_bf16_units(matrix.device.type) else torch.float32
    x = matrix.to(dtype or fast)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T
