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
from collections.abc import Iterator
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
MOST = {"cuda": 2**24}  # numbers of the matrices that a device moves together, 64 MiB; else one


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
        check_covered(model, covered, "muon")
        return Muon(groups(model, covered, "muon"), self, lr=lr, weight_decay=weight_decay)


class Muon(MatrixOptimizer):
    """AdamW, in which groups of the rule "muon" move as the formula above says."""

    rule = "muon"

    def move_all(self, params, group) -> None:
        """Matrices of one shape move together: few launches of a GPU, each of them larger."""
        for alike in batches(params):
            momenta, grads = [self._momentum(param) for param in alike], [p.grad for p in alike]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            ahead = stacked(torch._foreach_lerp(grads, momenta, group["momentum"]))
            orthogonal = newton_schulz(ahead, group["steps"]).to(ahead.dtype)
            length = 0.2 * math.sqrt(max(ahead.shape[1:]))
            torch._foreach_add_(alike, (length * orthogonal).unbind(), alpha=-group["lr"])
            if group["weight_decay"]:
                torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])

    def _momentum(self, param) -> torch.Tensor:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        return state["momentum"]


def batches(params: list) -> Iterator[list]:
    """Matrices of one shape, type and device; on a CPU, whose caches serve one best, one alone."""
    alike: dict[tuple, list] = {}
    for param in params:
        alike.setdefault((param.shape, param.dtype, param.device), []).append(param)
    for (shape, _, device), same in alike.items():
        size = max(MOST.get(device.type, 0) // shape.numel(), 1)
        yield from (same[i : i + size] for i in range(0, len(same), size))


def stacked(matrices: list) -> torch.Tensor:
    """(m, rows, columns), of one matrix without a copy."""
    return matrices[0][None] if len(matrices) == 1 else torch.stack(matrices)


def newton_schulz(matrix: torch.Tensor, steps: int, dtype: torch.dtype | None = None):
    """About U Vᵀ of each of (m, rows, columns) = U S Vᵀ.

    dtype: by default bfloat16 if there are units for it, else float32. A product and the sum after
    it are one operation, which rounds once.
    """
    a, b, c = QUINTIC
    fast = torch.bfloat16 if has_bf16_units(matrix.device.type) else torch.float32
    x, tall = matrix.to(dtype or fast), matrix.shape[-2] > matrix.shape[-1]
    wide = x.mT if tall else x
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, polynomial, wide, beta=a)
    return wide.mT if tall else wide
