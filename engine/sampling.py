"""One token a row from logits: greedy, or drawn from what top-k and top-p leave."""

import torch

from engine.devices import widest_float
from engine.errors import InputError

ATTEMPTS = 10  # draws that may miss a small nucleus before it is cut out


def choose(logits, temperature, *, top_k=0, top_p=1.0, generator=None):
    """Pick one token a row from logits (b, v); returns (b,). Temperature 0 takes the likeliest."""
    largest, likeliest = logits.max(dim=-1)
    if not bool(largest.isfinite().all()):
        raise InputError(
            "a logit is not finite, so that no token can be drawn: the model's training diverged: "
            "train with a smaller --lr or --clip 1"
        )
    if temperature == 0:
        return likeliest
    probabilities = keep_top_k(logits.float() / temperature, top_k).softmax(dim=-1)
    return draw_from_nucleus(probabilities, top_p, generator)


def draw_from_nucleus(probabilities, top_p: float, generator=None):
    """A draw from `keep_top_p`'s nucleus of (b, v), renormalised, mostly without sorting; (b,).

    A token is in the nucleus exactly when the tokens likelier than it sum to less than p. So draw
    from everything, and again where that lands outside (rejection sampling); the rows of a nucleus
    so small that this keeps failing have it cut out by sorting.
    """
    wide = widest_float(probabilities.device)
    running = probabilities.cumsum(dim=-1, dtype=wide)
    chosen = draw(running, generator)
    if top_p >= 1:
        return chosen
    for attempt in range(ATTEMPTS):
        likelier = probabilities > probabilities.gather(1, chosen[:, None])
        outside = (probabilities * likelier).sum(dim=-1) >= top_p
        if not bool(outside.any()):
            break
        if attempt == ATTEMPTS - 2:
            nucleus = keep_top_p(probabilities.log(), top_p).softmax(dim=-1)
            running = nucleus.cumsum(dim=-1, dtype=wide)
        chosen = torch.where(outside, draw(running, generator), chosen)
    return chosen


def draw(running, generator=None):
    """One index a row from running sums of probabilities (b, v); returns (b,).

    The first index at which the sum reaches u, uniform in (0, total]: an entry of probability 0 is
    never drawn, and one random number a row is enough.
    """
    uniform = torch.rand(
        len(running), 1, dtype=running.dtype, device=running.device, generator=generator
    )
    return torch.searchsorted(running, (1 - uniform) * running[:, -1:])[:, 0]


def keep_top_k(logits, top_k: int):
    """Set all but the k largest logits of each row (b, v) to −∞; 0 keeps everything."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits, top_p: float):
    """Nucleus sampling: keep the fewest tokens whose probabilities sum to at least p.

    Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration", eq. 2–3. The likeliest
    token always stays. logits: (b, v), the rest becomes −∞.
    """
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    dropped = probabilities.cumsum(dim=-1) - probabilities >= top_p
    dropped[:, 0] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
