"""What decoding.py's strategies are made of: texts that grow, rules for logits, and searches.

Rules are pure functions of logits (b, v); the formulas stand with them. Searches grow the texts of
a batch, each token read once, and give every text what it would get alone.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.batches import is_right_padded
from engine.errors import InputError
from engine.generation import CachedDecoder

# -- rules -----------------------------------------------------------------------------------------


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


# -- texts -----------------------------------------------------------------------------------------


class Rows:
    """n texts, (n, capacity) tokens of which `lengths` (n,) are there; each is read once.

    prompts: (n,), how many tokens were given; limits: (n,), how many there may be; likelihood:
    (n,), log p of those that were added, where this is kept; done: (n,), no more is added;
    states: (n, capacity, d), the model's last hidden states of the tokens read, `known` (n,).
    """

    def __init__(self, model, input_ids, attention_mask, most: int):
        """input_ids, attention_mask: (n, t), right-padded; `most` tokens are added to each."""
        self.prompts = attention_mask.sum(dim=1)
        if not is_right_padded(attention_mask) or not bool(self.prompts.all()):
            raise ValueError("prompts must be padded on the right and hold a token or more each")
        longest, room = int(self.prompts.max()), model.config.max_position_embeddings
        if longest >= room:
            raise InputError(f"a prompt of {longest} tokens leaves no room in {room} positions")
        capacity = min(longest + most, room)
        self.model, self.decoder = model, CachedDecoder(model, capacity)
        self.limits = (self.prompts + most).clamp(max=capacity)
        self.lengths, self.known = self.prompts.clone(), self.prompts.clone()
        self.likelihood = torch.zeros(len(input_ids), device=input_ids.device)
        self.done = self.lengths >= self.limits
        self.tokens = input_ids.new_zeros(len(input_ids), capacity)
        self.tokens[:, :longest] = (input_ids * attention_mask)[:, :longest]
        positions = torch.arange(longest, device=input_ids.device).expand(len(input_ids), longest)
        read = self.decoder.read(self.tokens[:, :longest], positions)
        self.states = read.new_zeros(len(input_ids), capacity, read.shape[-1])
        self.states[:, :longest] = read

    def __len__(self):
        return len(self.tokens)

    @property
    def numbers(self) -> torch.Tensor:
        return torch.arange(len(self), device=self.tokens.device)

    @property
    def present(self) -> torch.Tensor:
        """(n, capacity), true where there is a token."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return places < self.lengths[:, None]

    def texts(self) -> list[torch.Tensor]:
        return [row[:length] for row, length in zip(self.tokens, self.lengths, strict=True)]

    def last_states(self) -> torch.Tensor:
        """(n, d): the hidden state at each text's last token, after reading what is new."""
        while bool((self.known < self.lengths).any()):
            at = torch.minimum(self.known, self.lengths - 1)[:, None]
            self.decoder.length = int(self.known.max())  # no row has more to look back at
            read = self.decoder.read(self.tokens.gather(1, at), at)
            self.states[self.numbers, at[:, 0]] = read[:, 0]
            self.known = torch.minimum(self.known + 1, self.lengths)
        return self.states[self.numbers, self.lengths - 1]

    def logits(self) -> torch.Tensor:
        """(n, v), float32: what may come next."""
        return self.model.hidden_state_to_token(self.last_states()).float()

    def seen(self, v: int) -> torch.Tensor:
        """(n, v), true where a token stands in the text, prompt included."""
        there = torch.where(self.present, self.tokens, self.tokens[:, :1])
        return torch.zeros(len(self), v, dtype=torch.bool, device=there.device).scatter(
            1, there, True
        )

    def append(self, chosen, *, where=None, end: int | None = None) -> None:
        """Add a token (n,) to each text that is not done, or of these only `where` (n,) says so."""
        where = ~self.done if where is None else where & ~self.done
        place = self.lengths.clamp(max=self.tokens.shape[1] - 1)
        self.tokens[self.numbers, place] = torch.where(
            where, chosen, self.tokens[self.numbers, place]
        )
        self.lengths = self.lengths + where.long()
        self.done = self.done | (self.lengths >= self.limits)
        if end is not None:
            self.done = self.done | (where & (chosen == end))

    def select(self, rows, *, room: int | None = None) -> "Rows":
        """These texts (a tensor of their numbers), in this order, with what is known of them.

        room: how many tokens more are read of them at most, which saves memory.
        """
        chosen, chosen.decoder = copy.copy(self), copy.copy(self.decoder)
        chosen.decoder.caches = [_selected(cache, rows, room) for cache in self.decoder.caches]
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(chosen, name, value.index_select(0, rows))
        return chosen

    def repeated(self, times: int, *, room: int | None = None) -> "Rows":
        """Each text so many times, one after the other."""
        return self.select(self.numbers.repeat_interleave(times), room=room)


def _selected(cache, rows, room: int | None):
    """A layer's keys and values of these rows; what is not in use is not copied."""
    chosen = copy.copy(cache)
    if room is not None:
        chosen.capacity = min(cache.capacity, cache.length + room)
    for name in ("key", "value"):
        whole = getattr(cache, name)  # (b, h, capacity, k)
        kept = whole.new_zeros(len(rows), whole.shape[1], chosen.capacity, whole.shape[3])
        kept[:, :, : cache.length] = whole[:, :, : cache.length].index_select(0, rows)
        setattr(chosen, name, kept)
    return chosen


# -- searches --------------------------------------------------------------------------------------


def sample(rows: Rows, pick, end: int) -> Rows:
    """Add tokens, `pick(logits, rows)` -> (n,), until all texts are done; keeps log p of them."""
    while not bool(rows.done.all()):
        logits = rows.logits()
        chosen = pick(logits, rows)
        gained = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
        rows.likelihood = rows.likelihood + gained.where(~rows.done, torch.zeros_like(gained))
        rows.append(chosen, end=end)
    return rows


def contrastive_search(rows: Rows, *, k: int, alpha: float, end: int) -> Rows:
    """Of the k likeliest next tokens add the one that `contrastive_scores` puts first."""
    while not bool(rows.done.all()):
        likeliest = rows.logits().softmax(dim=-1).topk(k)
        tried = rows.repeated(k)
        tried.append(likeliest.indices.flatten(), end=end)
        scores = contrastive_scores(
            likeliest.values,
            tried.last_states().view(len(rows), k, -1),
            context=rows.states,
            present=rows.present,
            alpha=alpha,
        )
        rows = tried.select(rows.numbers * k + scores.argmax(dim=-1))
    return rows


@dataclass(frozen=True)
class Hypothesis:
    """A text that a beam search finished, and log p(y) / |y|^a of what it added."""

    tokens: torch.Tensor
    score: float


class Pool:
    """The best texts that a group of beams has finished."""

    def __init__(self, size: int, length_penalty: float):
        self.size, self.length_penalty, self.best = size, length_penalty, []
        self.closed = False

    def add(self, tokens, score: float, added: int) -> None:
        self.best.append(Hypothesis(tokens, score / added**self.length_penalty))
        self.best = sorted(self.best, key=lambda found: -found.score)[: self.size]

    def close_unless(self, running: float, added: int) -> None:
        """Closed for good once it is full and no beam that goes on looks better than its worst."""
        hope = running / added**self.length_penalty
        if len(self.best) == self.size and hope <= self.best[-1].score:
            self.closed = True


def beam_search(
    rows: Rows, *, beams: int, length_penalty: float, end: int, groups: int = 1, diversity=0.0
) -> list[list[Hypothesis]]:
    """The finished texts of each row, the best first: log p(y) / |y|^a, y with its end token.

    Beams go on in groups of equal size. A group chooses by log p(y) − λ · (how often the groups
    before it chose this token in this step), and remembers log p(y): Vijayakumar et al. 2016,
    algorithm 1, with Hamming diversity. One group is the usual beam search.
    """
    n, size = len(rows), beams // groups
    rows = rows.repeated(beams)
    scores = torch.full((n, groups, size), -math.inf, device=rows.tokens.device)
    scores[:, :, 0] = 0  # all beams are the same yet
    pools = [[Pool(size, length_penalty) for _ in range(groups)] for _ in range(n)]
    while not bool(rows.done.all()):
        log_p = rows.logits().log_softmax(dim=-1).view(n, groups, size, -1)
        v = log_p.shape[-1]
        taken = log_p.new_zeros(n, v)  # how often earlier groups chose each token
        parents = rows.numbers.view(n, groups, size).clone()
        chosen = torch.zeros_like(parents)
        for g in range(groups):
            total = scores[:, g, :, None] + log_p[:, g]  # (n, size, v)
            order = (total - diversity * taken[:, None]).flatten(1).topk(2 * size).indices
            values = total.flatten(1).gather(1, order)
            for i in range(n):
                if not pools[i][g].closed:
                    first = (i * groups + g) * size
                    ranked = zip(order[i].tolist(), values[i].tolist(), strict=True)
                    beam = _continue(rows, pools[i][g], first, ranked, v=v, size=size, end=end)
                    for b, (parent, token, score) in enumerate(beam):
                        parents[i, g, b], chosen[i, g, b], scores[i, g, b] = parent, token, score
                        taken[i, token] += 1
        rows = rows.select(parents.flatten())
        rows.append(chosen.flatten())
        closed = torch.tensor([[pool.closed for pool in row] for row in pools])
        rows.done = closed.repeat_interleave(size, dim=1).flatten().to(rows.done.device)
    return [
        sorted((h for pool in row for h in pool.best), key=lambda found: -found.score)
        for row in pools
    ]


def _continue(rows: Rows, pool: Pool, first: int, ranked, *, v: int, size: int, end: int) -> list:
    """Beams [(row, token, score)] that go on, of ranked candidates [(beam · v + token, score)].

    Among the best `size` candidates, those that end go into the pool.
    """
    added = int(rows.lengths[first] + 1 - rows.prompts[first])
    full = int(rows.lengths[first]) + 1 >= int(rows.limits[first])
    beam = []
    for rank, (index, score) in enumerate(ranked):
        row, token = first + index // v, index % v
        if full or token == end:
            if rank < size:
                text = rows.tokens[row, : rows.lengths[row]]
                pool.add(torch.cat([text, text.new_tensor([token])]), score, added)
        elif len(beam) < size:
            beam.append((row, token, score))
    pool.closed = full
    if beam:
        pool.close_unless(max(score for _, _, score in beam), added)
    return beam
