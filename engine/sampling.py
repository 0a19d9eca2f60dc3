"""One token a row from logits: greedy, or drawn from what top-k and top-p leave.

`choose` looks at numbers on the way, which a GPU would be waited for; `BlindChoice` does not.
"""

import torch

from engine.devices import widest_float
from engine.errors import InputError

ATTEMPTS = 10  # draws that may miss a small nucleus before it is cut out


def choose(logits, temperature, *, top_k=0, top_p=1.0, generator=None):
    """Pick one token a row from logits (b, v); returns (b,). Temperature 0 takes the likeliest."""
    largest, likeliest = logits.max(dim=-1)
    check_sound(largest.isfinite().all())
    if temperature == 0:
        return likeliest
    probabilities = keep_top_k(logits.float() / temperature, top_k).softmax(dim=-1)
    return draw_from_nucleus(probabilities, top_p, generator)


def check_sound(finite: torch.Tensor) -> None:
    """Refuse logits that are not finite; finite: one truth value, which is looked at."""
    if not bool(finite):
        raise InputError(
            "a logit is not finite, so that no token can be drawn: the model's training diverged: "
            "train with a smaller --lr or --clip 1"
        )


class BlindChoice:
    """`choose` without a look at any number, for a step that a GPU replays as a recording.

    Its random numbers, one a row and token, are drawn ahead: `look` goes before each `block` calls,
    and refuses what those before it found not finite. The nucleus is cut out by sorting.
    """

    def __init__(self, rows: int, device, block: int, temperature, *, top_k, top_p, generator):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = generator
        self.uniform = torch.zeros(block, rows, 1, dtype=widest_float(device), device=device)
        self.call = torch.zeros(1, dtype=torch.long, device=device)  # since a look
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def look(self) -> None:
        check_sound(self.finite)
        self.uniform.uniform_(generator=self.generator)
        self.call.fill_(-1)

    def __call__(self, logits):
        """(b, v) -> (b,), as `choose`."""
        largest, likeliest = logits.max(dim=-1)
        self.finite &= largest.isfinite().all()
        if self.temperature == 0:
            return likeliest
        logits = keep_top_p(keep_top_k(logits.float() / self.temperature, self.top_k), self.top_p)
        running = logits.softmax(dim=-1).cumsum(dim=-1, dtype=self.uniform.dtype)
        self.call += 1
        return pick(running, self.uniform.index_select(0, self.call)[0])


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
    """One index a row from running sums of probabilities (b, v); returns (b,)."""
    uniform = torch.rand(
        len(running), 1, dtype=running.dtype, device=running.device, generator=generator
    )
    return pick(running, uniform)


def pick(running, uniform):
    """The index of each row (b, v) that a number of [0, 1) stands for, uniform: (b, 1).

    The first index at which the sum reaches u, uniform in (0, total]: an entry of probability 0 is
    never picked, and one random number a row is enough.
    """
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
