"""Shampoo: a matrix's gradient is whitened from the left and from the right.

    L ← L + G Gᵀ,   R ← R + Gᵀ G                            Gupta et al. 2018, algorithm 1
    W ← W − lr · D,   D = L^(−1/4) G R^(−1/4)

and as it is used since Anil et al. 2020, which is the default here:

    L ← β L + (1 − β) G Gᵀ, over 1 − βᵗ;   R likewise;   their roots anew every few steps
    M ← μ M + (1 − μ) G, in G's place in D
    W ← W − ‖Δ‖ / ‖D‖ · D,   Δ: AdamW's step for W          "grafting", Agarwal et al. 2020

so that AdamW's learning rates serve. It is for matrices: embeddings, biases and normalisations go
to AdamW (`coverage` and the optimizer's repr name both kinds). A side longer than `max_dim` has no
preconditioner, and the other one then has the power −1/2, as in the paper's algorithm 2 for tensors
of one dimension. Differs from the paper in all of that (every=1,decay=1,momentum=0,graft=false
switches the three lines off) and in the ridge: ε λ₁ I, relative to the largest eigenvalue, is added
when a root is taken, where the paper starts with L = R = ε I.

    python classifier.py --fine-tune-mode full-model --extension shampoo
    python classifier.py --extension lora --extension shampoo:every=20
"""

from dataclasses import dataclass

import torch

from engine.errors import InputError
from engine.extension import Extension
from extensions.matrix_optimizer import (
    MatrixOptimizer,
    check_covered,
    grafted,
    groups,
    matrices,
    running_mean,
)


@dataclass
class ShampooExtension(Extension):
    """every: steps between roots; decay β, 1 for sums; momentum μ; ridge ε."""

    every: int = 10
    decay: float = 0.999
    momentum: float = 0.9
    ridge: float = 1e-6
    graft: bool = True
    max_dim: int = 4096

    recordable = True

    def __post_init__(self):
        if self.every < 1 or self.max_dim < 1:
            raise InputError(
                f"shampoo: every={self.every}, max_dim={self.max_dim}: expected at least 1"
            )
        if not (0 < self.decay <= 1 and 0 <= self.momentum < 1 and 0 < self.ridge < 1):
            raise InputError(
                f"shampoo: decay={self.decay}, momentum={self.momentum}, ridge={self.ridge}: "
                f"expected a decay in (0, 1], a momentum in [0, 1) and a ridge in (0, 1)"
            )

    def make_optimizer(self, model, lr: float, weight_decay: float):
        covered = matrices(model, self.max_dim)
        check_covered(
            model, covered, "shampoo", f" that has a side of at most max_dim={self.max_dim}"
        )
        params = groups(model, covered, "shampoo")
        return Shampoo(params, self, lr=lr, weight_decay=weight_decay)


class Shampoo(MatrixOptimizer):
    """AdamW, in which groups of the rule "shampoo" move as the formula above says."""

    rule = "shampoo"

    def direction(self, param, group):
        """D, as long as AdamW's step at a learning rate of 1 if it is grafted."""
        grad, state = param.grad, self.state[param]
        if not state:
            if not grad.any():
                return None  # LoRA's A, in its first step: nothing is known of it yet
            state.update(first_state(param, group["max_dim"]))
        state["step"] += 1
        gather(state["grams"], grad, group["decay"])
        if (state["step"] - 1) % group["every"] == 0:
            state["roots"] = self._roots(state, group)
        mean = running_mean(grad, state, group["momentum"])
        left, right = state["roots"]
        direction = mean if left is None else left @ mean
        direction = direction if right is None else direction @ right
        if group["graft"]:
            direction = grafted(direction, grad, mean, state=state, group=group)
        return direction

    def _roots(self, state, group) -> list:
        """L and R to the power −1/4, or the one that there is to the power −1/2."""
        sides = [gram for gram in state["grams"] if gram is not None]
        if not all(bool(gram.isfinite().all()) for gram in sides):
            raise InputError("shampoo: a gradient is not finite: give a smaller --lr or --clip 1")
        power = 1 / (2 * len(sides))
        share = 1 if group["decay"] == 1 else 1 - group["decay"] ** state["step"]
        return [
            None if gram is None else inverse_root(gram / share, power, group["ridge"])
            for gram in state["grams"]
        ]


def first_state(param, max_dim: int) -> dict:
    """Everything 0; None stands for a side without a preconditioner."""
    return {
        "step": 0,
        "exp_avg": param.new_zeros(param.shape),
        "exp_avg_sq": param.new_zeros(param.shape),
        "grams": [param.new_zeros(n, n) if n <= max_dim else None for n in param.shape],
    }


def gather(grams: list, grad, decay: float) -> None:
    """Add G Gᵀ to L and Gᵀ G to R in place; both decay, but for decay 1."""
    share = 1 if decay == 1 else 1 - decay
    for gram, rows in zip(grams, (grad, grad.T), strict=True):
        if gram is not None:
            gram.mul_(decay).addmm_(rows, rows.T, alpha=share)


def inverse_root(matrix, power: float, ridge: float) -> torch.Tensor:
    """(X + ε λ₁ I)^(−power) of a symmetric X that is at least 0, λ₁ its largest eigenvalue.

    Where all of X is 0, the identity.
    """
    values, vectors = torch.linalg.eigh(matrix)
    largest = values[-1]
    values = torch.where(largest > 0, values.clamp(min=0) + ridge * largest, 1)
    return (vectors * values**-power) @ vectors.T
