"""Rules that say which tokens may come next: pure functions of logits (b, v), by their formulas."""

import torch
from torch.nn import functional as F


def repeat_less(logits, seen, penalty: float):
    """Divide the positive logits of tokens seen, (b, v) bool, by θ, and multiply the negative.

    Keskar et al. 2019, section 4.1, divides all; that makes a token of a negative logit likelier.
    """
    weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, weakened, logits)


def keep_min_p(logits, p: float):
    """Keep the tokens that are at least p times as likely as the likeliest; the rest gets −∞.

    Nguyen et al. 2024, section 3.
    """
    probabilities = logits.softmax(dim=-1)
    least = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)


def keep_typical(logits, mass: float):
    """Keep the fewest tokens of a mass of at least τ whose information is nearest to the entropy.

    They come by |H + log p|, the smallest first: Meister et al. 2022, locally typical sampling.
    """
    if mass >= 1:
        return logits
    log_p = logits.log_softmax(dim=-1)
    entropy = torch.special.entr(log_p.exp()).sum(dim=-1, keepdim=True)  # (b, 1)
    order = (entropy + log_p).abs().argsort(dim=-1, stable=True)
    ordered = log_p.exp().gather(1, order)
    dropped = ordered.cumsum(dim=-1) - ordered >= mass
    dropped[:, 0] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def contrastive_scores(probabilities, candidates, *, context, present, alpha: float):
    """(1 − α) p(v | x) − α max_j cos(h_v, h_j), of k candidates a row: Su et al. 2022, eq. 5.

    probabilities: (b, k); candidates: their states (b, k, d); context: (b, t, d), of which
    `present` (b, t) counts. Returns (b, k).
    """
    similarity = F.normalize(candidates, dim=-1) @ F.normalize(context, dim=-1).mT  # (b, k, t)
    similarity = similarity.masked_fill(~present[:, None], -torch.inf)
    return (1 - alpha) * probabilities - alpha * similarity.amax(dim=-1)
