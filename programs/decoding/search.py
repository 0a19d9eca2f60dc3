"""Searches that strategies are made of: sampling, contrastive search, beam search.

Each grows the texts of a batch (rows.py) and gives every text what it would get alone.
"""

import math
from dataclasses import dataclass

import torch

from programs.decoding.rows import Rows
from programs.decoding.rules import contrastive_scores


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
        self.best = sorted(self.best, key=lambda hypothesis: -hypothesis.score)[: self.size]

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
        parents, chosen = _step(rows, pools, scores, log_p, diversity=diversity, end=end)
        rows = rows.select(parents.flatten())
        rows.append(chosen.flatten())
        closed = torch.tensor([[pool.closed for pool in row] for row in pools])
        rows.done = closed.repeat_interleave(size, dim=1).flatten().to(rows.done.device)
    return [
        sorted((h for pool in row for h in pool.best), key=lambda hypothesis: -hypothesis.score)
        for row in pools
    ]


def _step(rows: Rows, pools, scores, log_p, *, diversity: float, end: int):
    """Each beam's parent and token (n, groups, size); scores, of that shape, move in place.

    log_p: (n, groups, size, v) of the next tokens.
    """
    n, groups, size, v = log_p.shape
    taken = log_p.new_zeros(n, v)  # how often earlier groups chose each token
    parents = rows.numbers.view(n, groups, size).clone()
    chosen = torch.zeros_like(parents)
    for g in range(groups):
        total = scores[:, g, :, None] + log_p[:, g]  # (n, size, v)
        order = (total - diversity * taken[:, None]).flatten(1).topk(2 * size).indices
        values = total.flatten(1).gather(1, order)
        for i in range(n):
            if pools[i][g].closed:
                continue
            first = (i * groups + g) * size
            ranked = zip(order[i].tolist(), values[i].tolist(), strict=True)
            beam = _continue(rows, pools[i][g], first, ranked, v=v, size=size, end=end)
            for b, (parent, token, score) in enumerate(beam):
                parents[i, g, b], chosen[i, g, b], scores[i, g, b] = parent, token, score
                taken[i, token] += 1
    return parents, chosen


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
