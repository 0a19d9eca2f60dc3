"""Speculative decoding: a small model drafts tokens, the large one reads them all at once.

    accept a drafted x with probability min(1, p(x) / q(x)), else draw from norm(max(0, p − q))
                                                           Leviathan et al. 2023, algorithm 1

p and q are the distributions of the target and the draft at that place, after the same temperature,
top-k and top-p. What follows the first refused token is forgotten; if all γ are accepted, one more
token is drawn from p. So the texts have the target's own distribution, whatever the draft is. Keys
and values of forgotten tokens stay in the caches until others come in their place: a query sees
only what is not later than itself. Differs from the paper in that γ falls to what the shortest rest
of a batch leaves room for.

Leviathan, Kalman & Matias 2023, "Fast Inference from Transformers via Speculative Decoding".
"""

from dataclasses import dataclass

import torch

from engine.errors import InputError
from engine.forms import DENSE
from engine.inputs import tokenizer_digest
from engine.sampling import check_sound, draw, keep_top_k, keep_top_p
from programs.decoding.rows import Rows


@dataclass
class Tally:
    """passes: of the target, each over a batch; added: tokens of all texts."""

    proposed: int = 0
    accepted: int = 0
    passes: int = 0
    added: int = 0

    def __str__(self):
        share = self.accepted / max(self.proposed, 1)
        return (
            f"{self.accepted:,} of {self.proposed:,} drafted tokens are accepted ({share:.3f}); "
            f"{self.passes:,} forward passes of the target over batches, {self.added:,} tokens"
        )


def distribution(logits, *, temperature: float, top_k: int, top_p: float):
    """(…, v) -> the probabilities of what is drawn from; temperature 0: 1 for the likeliest."""
    rows = logits.flatten(0, -2).float()
    check_sound(rows.amax(dim=-1).isfinite().all())
    if temperature == 0:
        return (
            torch.zeros_like(rows)
            .scatter(1, rows.argmax(dim=-1, keepdim=True), 1.0)
            .view_as(logits)
        )
    kept = keep_top_p(keep_top_k(rows / temperature, top_k), top_p)
    return kept.softmax(dim=-1).view_as(logits)


def verify(p, q, drafted, generator=None):
    """Algorithm 1 from its accept step on: (accepted (n,), next token (n,)).

    p: (n, γ + 1, v), q: (n, γ, v), drafted: (n, γ), drawn from q.
    """
    n, gamma = drafted.shape
    uniform = torch.rand(n, gamma, dtype=p.dtype, device=p.device, generator=generator)
    of_p, of_q = (x.gather(2, drafted[..., None])[..., 0] for x in (p[:, :gamma], q))
    accepted = (uniform * of_q < of_p).long().cumprod(dim=1).sum(dim=1)
    at = accepted[:, None, None].expand(-1, 1, p.shape[-1])
    none = torch.zeros_like(p[:, :1])  # after γ accepted tokens: all of p is left
    here, there = p.gather(1, at)[:, 0], torch.cat([q, none], dim=1).gather(1, at)[:, 0]
    rest = (here - there).clamp(min=0)
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, here)
    return accepted, draw(rest.cumsum(dim=-1), generator)


def speculative_sample(rows: Rows, draft: Rows, *, gamma, rule, end, generator, tally) -> Rows:
    """Add tokens to the target's texts until all are done; draft: the same texts.

    rule(logits) is the distribution that is drawn from, of either model.
    """
    before = rows.lengths.sum()
    while not bool(rows.done.all()):
        start, live = rows.lengths.clone(), ~rows.done
        count = min(gamma, int((rows.limits - rows.lengths)[live].min()) - 1)
        drafted, q = propose(rows, draft, count, rule, generator)
        p = rule(rows.model.hidden_state_to_token(read_ahead(rows, draft.tokens, count + 1)))
        accepted, following = verify(p, q if count else p[:, :0], drafted, generator)
        for j in range(count):
            rows.append(drafted[:, j], where=accepted > j, end=end)
        rows.append(following, end=end)
        draft.known = torch.minimum(draft.known, start + accepted)
        tally.passes += 1
        tally.proposed += count * int(live.sum())
        tally.accepted += int(accepted[live].sum())
    tally.added += int(rows.lengths.sum() - before)
    return rows


def propose(rows: Rows, draft: Rows, count: int, rule, generator):
    """`count` tokens (n, count) that the draft adds to the target's texts, and q (n, count, v)."""
    draft.tokens, draft.lengths = rows.tokens.clone(), rows.lengths.clone()
    draft.done = rows.done.clone()
    drafted, q = [rows.tokens[:, :0]], []
    for _ in range(count):
        q.append(rule(draft.logits()))
        chosen = draw(q[-1].cumsum(dim=-1), generator)
        draft.append(chosen)
        drafted.append(chosen[:, None])
    return torch.cat(drafted, dim=1), torch.stack(q, dim=1) if q else None


def read_ahead(rows: Rows, tokens, count: int):
    """The target's states (n, count, d) from each text's last token on, of tokens (n, capacity)."""
    first = rows.lengths - 1
    places = torch.arange(count, device=tokens.device)
    at = (first[:, None] + places).clamp(max=tokens.shape[1] - 1)  # only of texts that are done
    rows.decoder.length = int(first.max())
    return rows.decoder.read(tokens.gather(1, at), at)


def check_draft(path, draft, target) -> None:
    """Refuse a draft of another vocabulary, or attention that reads one token at a time."""
    digests = [tokenizer_digest(model.tokenizer) for model in (draft, target)]
    sizes = [model.gpt.config.vocab_size for model in (draft, target)]
    if digests[0] != digests[1] or sizes[0] != sizes[1]:
        raise InputError(
            f"--draft {path}: its tokenizer, of {sizes[0]} tokens, is not that of the model, of "
            f"{sizes[1]}: give a draft that shares it"
        )
    positions = [m.gpt.config.max_position_embeddings for m in (draft, target)]
    if positions[0] < positions[1]:
        raise InputError(
            f"--draft {path}: it has {positions[0]} positions, expected at least the model's "
            f"{positions[1]}"
        )
    for layer in target.gpt.gpt_layers:
        if layer.self_attention.attend not in DENSE:
            raise InputError("--draft: the model must have dense attention to read several tokens")
