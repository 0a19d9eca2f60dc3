"""The loss of distillation, pure functions of logits.

    p_i = exp(z_i / T) / Σ_j exp(z_j / T)                      Hinton et al. 2015, eq. 1
    T² KL(p ‖ q) = T² Σ_i p_i (log p_i − log q_i)              section 2
    its gradient: T (q_i − p_i)  →  (x_i − z_i) / c            eq. 2 to 4: T → ∞, logits of mean 0

z are the teacher's and x the student's logits, (…, c); q is the student's distribution at T, p that
of the teachers. Cross-entropy with p, which the paper has in the place of KL(p ‖ q), differs by the
entropy of p: the gradient is the same, and the KL divergence is 0 where the student is the teacher.
"""

import torch
from torch.nn import functional as F

from programs.ensemble.weights import POOLS


def soft_targets(logits, temperature: float, pool: str):
    """Teachers' logits (m, n, c) -> log p (n, c): each teacher's distribution at T, then the mean.

    pool: "log" for the geometric mean, which is that of the logits, "linear" for the arithmetic.
    """
    softened = (logits.float() / temperature).log_softmax(dim=-1)
    weights = torch.full((len(logits),), 1 / len(logits), device=logits.device)
    return POOLS[pool](softened, weights)


def imitation_loss(logits, targets, temperature: float):
    """T² KL(p ‖ q) of each row, (n,); logits: the student's, (n, c); targets: log p, (n, c)."""
    log_q = (logits.float() / temperature).log_softmax(dim=-1)
    divergence = F.kl_div(log_q, targets, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * divergence
