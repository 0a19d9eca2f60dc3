"""R-Drop: two passes with different dropout shall say the same.

    L = ½ (L₁ + L₂) + α/4 · [KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)]          Liang et al. 2021, eq. 2–4, halved

P₁, P₂ are the distributions that two passes over one batch predict, L₁, L₂ their cross-entropies.
Differs from the paper in the factor ½ over all, which keeps the size of the loss and of the
learning rate; in language modelling the divergence is a mean over the real tokens.

    python classifier.py --fine-tune-mode full-model --extension rdrop:alpha=1.0
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.batches import IGNORED_LABEL, forward_tokens
from engine.errors import InputError
from engine.extension import Extension


@dataclass
class RDrop(Extension):
    alpha: float = 1.0

    shardable = True

    def __post_init__(self):
        if not 0 <= self.alpha < float("inf"):
            raise InputError(f"rdrop: alpha={self.alpha}: expected at least 0")

    def penalty(self, model, batch: dict, logits):
        """What is missing from L₁, the task's own loss: ½ (L₂ − L₁) and the divergence."""
        again = forward_tokens(model, batch)
        labels = batch["labels"].flatten()
        first, second = (x.flatten(0, -2).float() for x in (logits, again))
        losses = [F.cross_entropy(x, labels, ignore_index=IGNORED_LABEL) for x in (first, second)]
        real = labels != IGNORED_LABEL
        divergence = symmetric_divergence(first[real], second[real])
        return 0.5 * (losses[1] - losses[0]) + 0.5 * self.alpha * divergence


def symmetric_divergence(first, second) -> torch.Tensor:
    """Mean over rows of ½ [KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)] of two sets of logits (n, classes), eq. 2."""
    one, two = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return 0.5 * ((one.exp() - two.exp()) * (one - two)).sum(dim=-1).mean()
