"""SOAP: Adam, on axes along which a matrix's gradients vary independently.

    G' = Q_Lᵀ G Q_R,   M' = Q_Lᵀ M Q_R                      Vyas et al. 2024, algorithm 3
    M ← β₁ M + (1 − β₁) G,   V ← β₂ V + (1 − β₂) G' ⊙ G'
    W ← W − α Q_L [M' / (√V + ε)] Q_Rᵀ                      α as in this project's AdamW
    L ← β₂ L + (1 − β₂) G Gᵀ,   R ← β₂ R + (1 − β₂) Gᵀ G
    Q_L ← QR(L Q_L),   Q_R ← QR(R Q_R),  every few steps    algorithm 4, one power iteration

The columns of Q_L and Q_R come close to the eigenvectors of Shampoo's L and R. It is for matrices:
embeddings, biases and normalisations go to AdamW (`coverage` and the optimizer's repr name both
kinds), and a side longer than `max_dim` keeps its own axes. As in the published code, the first
gradient of a matrix moves nothing: it gives L, R and, by a whole eigendecomposition, Q_L and Q_R,
so that no gradient is seen on axes that it made by itself. Differs from the paper in that, as in
the published code, columns are put in the order of their eigenvalues before a power iteration, V's
rows and columns with them, and in ε and decay, which are as in this project's AdamW.

    python classifier.py --fine-tune-mode full-model --extension soap
    python pretrain.py --text FILE --out DIR --extension soap:every=20
"""

import math
from dataclasses import dataclass

import torch

from engine.errors import InputError
from engine.extension import Extension
from extensions.matrix_optimizer import MatrixOptimizer, check_covered, groups, matrices


@dataclass
class SoapExtension(Extension):
    """every: steps between power iterations; beta1, beta2: of the matrices."""

    every: int = 10
    beta1: float = 0.95
    beta2: float = 0.95
    max_dim: int = 4096

    recordable = True

    def __post_init__(self):
        if self.every < 1 or self.max_dim < 1:
            raise InputError(
                f"soap: every={self.every}, max_dim={self.max_dim}: expected at least 1"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(
                f"soap: beta1={self.beta1}, beta2={self.beta2}: expected both in [0, 1)"
            )

    def make_optimizer(self, model, lr: float, weight_decay: float):
        covered = matrices(model, self.max_dim)
        check_covered(model, covered, "soap", f" that has a side of at most max_dim={self.max_dim}")
        params = groups(model, covered, "soap")
        return Soap(params, self, lr=lr, weight_decay=weight_decay)


class Soap(MatrixOptimizer):
    """AdamW, in which groups of the rule "soap" move as the formula above says."""

    rule = "soap"

    def direction(self, param, group):
        """Adam's step on the axes of the bases, turned back; the first gradient gives the bases."""
        beta1, beta2, grad, state = group["beta1"], group["beta2"], param.grad, self.state[param]
        if not state:
            if grad.any():  # LoRA's A has none in its first step
                state.update(first_state(grad, beta2=beta2, max_dim=group["max_dim"]))
            return None
        state["step"] += 1
        t, (left, right) = state["step"], state["bases"]
        turned = turn(grad, left, right)
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        scaled = turn(state["exp_avg"], left, right) / (state["exp_avg_sq"].sqrt() + group["eps"])
        direction = turn_back(scaled, left, right)
        gather(state["grams"], grad, beta2)
        if t % group["every"] == 0:
            refresh(state)
        return direction * (math.sqrt(1 - beta2**t) / (1 - beta1**t))


def first_state(grad, *, beta2: float, max_dim: int) -> dict:
    """L, R and their eigenvectors of one gradient; None stands for a side with its own axes.

    All tensors are contiguous, as they come back from a file: a product's last bits depend on that.
    """
    grams = [grad.new_zeros(n, n) if n <= max_dim else None for n in grad.shape]
    gather(grams, grad, beta2)
    check(grams)
    return {
        "step": 0,
        "exp_avg": grad.new_zeros(grad.shape),
        "exp_avg_sq": grad.new_zeros(grad.shape),  # on the axes of the bases
        "grams": grams,
        "bases": [None if gram is None else eigenvectors(gram) for gram in grams],
    }


def gather(grams: list, grad, beta2: float) -> None:
    """Take G into the running means of G Gᵀ and Gᵀ G, in place."""
    for gram, rows in zip(grams, (grad, grad.T), strict=True):
        if gram is not None:
            gram.mul_(beta2).addmm_(rows, rows.T, alpha=1 - beta2)


def refresh(state: dict) -> None:
    """Turn the bases towards the eigenvectors of L and R as they are now; V follows the order."""
    check(state["grams"])
    for dim, (gram, basis) in enumerate(zip(state["grams"], state["bases"], strict=True)):
        if gram is not None:
            order = eigenvalues(gram, basis).argsort(descending=True, stable=True)
            state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dim, order)
            state["bases"][dim] = power_iteration(gram, basis[:, order])


def check(grams: list) -> None:
    if not all(gram is None or bool(gram.isfinite().all()) for gram in grams):
        raise InputError("soap: a gradient is not finite: give a smaller --lr or --clip 1")


def turn(matrix, left, right) -> torch.Tensor:
    """Q_Lᵀ X Q_R."""
    matrix = matrix if left is None else left.T @ matrix
    return matrix if right is None else matrix @ right


def turn_back(matrix, left, right) -> torch.Tensor:
    """Q_L X Q_Rᵀ."""
    matrix = matrix if left is None else left @ matrix
    return matrix if right is None else matrix @ right.T


def eigenvectors(gram) -> torch.Tensor:
    """The columns of an orthogonal matrix, that of the largest eigenvalue first."""
    return torch.linalg.eigh(gram).eigenvectors.flip(1).contiguous()


def eigenvalues(gram, basis) -> torch.Tensor:
    """About the eigenvalues that belong to the columns of a basis: qᵀ X q of each."""
    return (basis * (gram @ basis)).sum(dim=0)


def power_iteration(gram, basis) -> torch.Tensor:
    """The Q of X Q, whose columns are closer to the eigenvectors than those of the basis."""
    return torch.linalg.qr(gram @ basis).Q.contiguous()
