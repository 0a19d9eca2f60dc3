"""The objective of GRPO as pure functions of rewards and of tokens' log-probabilities.

    Â_i = (r_i − mean(r)) / std(r)                              of the G samples of one prompt
    ρ_it = π(o_it) / π_old(o_it)
    D_it = π_ref(o_it) / π(o_it) − log(π_ref(o_it) / π(o_it)) − 1                     eq. 4
    J = 1/G Σ_i 1/|o_i| Σ_t [ min(ρ_it Â_i, clip(ρ_it, 1 − ε, 1 + ε) Â_i) − β D_it ]      eq. 3

o_i is a sample, its end token too; π(o_it) stands for π(o_it | q, o_i<t), q for the prompt.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models", section 4.1. std divides by G; the paper does not say by what. Differs from the paper in
that a group whose rewards are equal has the advantage 0, where the formula divides 0 by 0.
"""

import torch

from engine.batches import IGNORED_LABEL

LEAST_SPREAD = 1e-6  # of rewards from 0 to 1: below it they differ by rounding alone


def advantages(rewards):
    """Â of rewards (groups, G), in the same shape."""
    rewards = rewards.double()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > LEAST_SPREAD, centred / deviation, 0.0).float()


def k3(log_probs, reference):
    """D of log π and log π_ref, in their shape: an unbiased estimate of KL(π ‖ π_ref), never < 0.

    Its mean over tokens that π drew is the divergence: Schulman 2020, "Approximating KL
    Divergence".
    """
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio


def clipped(log_probs, old, advantage, epsilon: float):
    """min(ρ Â, clip(ρ) Â) of each token: log π and log π_old (b, t), Â (b,) -> (b, t)."""
    ratio = torch.exp(log_probs - old)
    weight = advantage[:, None]
    return torch.minimum(ratio * weight, ratio.clamp(1 - epsilon, 1 + epsilon) * weight)


def sample_means(values, mask):
    """Σ_t / |o_i| over the tokens that `mask` (b, t) has: values (b, t) -> (b,)."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def grpo_loss(log_probs, batch: dict, *, epsilon: float, beta: float):
    """−J summed over samples, not divided by their number.

    log_probs (b, t): log π. batch: answers (b, t), IGNORED_LABEL where no token of a sample is;
    advantages (b,); reference (b, t), log π_ref, where beta is above 0; old (b, t), log π_old.
    Without `old`, π_old is π, as in the first update after sampling: there ρ is 1, and its gradient
    that of log π. What stands in a tensor where no token is does not matter.
    """
    written = batch["answers"] != IGNORED_LABEL
    log_probs = log_probs.masked_fill(~written, 0)
    old = batch.get("old", log_probs.detach()).masked_fill(~written, 0)
    objective = clipped(log_probs, old, batch["advantages"], epsilon)
    if beta:
        objective = objective - beta * k3(log_probs, batch["reference"].masked_fill(~written, 0))
    return -sample_means(objective, written).sum()
