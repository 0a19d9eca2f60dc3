"""Sliding-window attention: each position sees a window of earlier ones, and a few others.

    position i sees j ≤ i  ⟺  j < g   or   i is the last   or   i − j < w m and m divides i − j

Longformer: Beltagy et al. 2020, section 3.1; w is the window, m its dilation. Its global tokens see
all tokens, and all see them. In a causal model the first g are global by being seen by all, as they
have only each other before them: they are the "attention sinks" of Xiao et al. 2023, section 3.2,
which keep long texts stable. With `last` the last token of each text, from which a classifier
reads, sees all before it; a language model has no such token, as it reads from every one. With a
dilation the last `dilated_heads` heads see every m-th position of a longer window, in the uppermost
`dilated_layers` layers (0: in all); the paper dilates two heads of upper layers.

Queries are cut into blocks of w, for each remainder of positions by m; a block's window lies in its
own and the previous block of keys, so time and memory grow with t · w, not t². Differs from the
paper in that the window looks back only, as a causal model must, and is equally wide in all layers;
and in that global tokens have no projections of their own.

    python classifier.py --fine-tune-mode full-model --extension sliding_window:window=128,sinks=4
    python classifier.py --dataset cfimdb --extension sliding_window:window=64,dilation=2,last=true
"""

import functools
import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch.nn import functional as F

from engine.errors import InputError
from engine.extension import Extension, replace_attention
from engine.language_model import LanguageModel


@dataclass
class SlidingWindow(Extension):
    window: int = 128
    sinks: int = 0
    dilation: int = 1
    dilated_heads: int = 2
    dilated_layers: int = 0
    last: bool = False

    recordable = True
    shardable = True

    def __post_init__(self):
        if self.window < 1 or self.sinks < 0:
            raise InputError(
                f"sliding_window: window={self.window}, sinks={self.sinks}: expected a window of "
                f"at least 1 and at least 0 sinks"
            )
        if self.dilation < 1 or self.dilated_heads < 1 or self.dilated_layers < 0:
            raise InputError(
                f"sliding_window: dilation={self.dilation}, dilated_heads={self.dilated_heads}, "
                f"dilated_layers={self.dilated_layers}: expected at least 1, 1 and 0"
            )

    def prepare_model(self, model) -> None:
        lower = len(model.gpt.gpt_layers) - (self.dilated_layers or len(model.gpt.gpt_layers))
        attend = self._attend(self.dilation)
        replace_attention(model, attend, technique="sliding_window", takes_prefix=False)
        for layer in model.gpt.gpt_layers[:lower]:
            layer.self_attention.attend = self._attend(dilation=1)

    def check(self, model) -> None:
        layers = model.gpt.gpt_layers
        heads = layers[0].self_attention.num_attention_heads
        if self.dilation > 1 and (self.dilated_heads > heads or self.dilated_layers > len(layers)):
            raise InputError(
                f"sliding_window: dilated_heads={self.dilated_heads}, "
                f"dilated_layers={self.dilated_layers}: the model has {heads} heads in "
                f"{len(layers)} layers: give no more"
            )
        if self.last and (isinstance(model, LanguageModel) or hasattr(model, "generate")):
            raise InputError(
                "sliding_window: last=true: a language model reads from every token, not from the "
                "last one: leave it out, or use it in a task that classifies texts"
            )

    def _attend(self, dilation: int):
        return functools.partial(
            longformer_attention,
            window=self.window,
            sinks=self.sinks,
            dilation=dilation,
            dilated_heads=self.dilated_heads,
            last=self.last,
        )


def longformer_attention(
    query, key, value, padding_mask, dropout, *, dilation, dilated_heads, last, **window
):
    """The signature of `causal_attention`: dilated and other heads, and a global last token."""
    if last and query.shape[-2] != key.shape[-2]:
        raise InputError("sliding_window: last=true: it goes with no cached decoding")
    plain = query.shape[1] - (dilated_heads if dilation > 1 else 0)
    parts = [
        windowed_attention(
            query[:, heads], key[:, heads], value[:, heads], padding_mask, dropout, **options
        )
        for heads, options in (
            (slice(plain), window),
            (slice(plain, None), {**window, "dilation": dilation}),
        )
        if query[:, heads].shape[1]
    ]
    out = torch.cat(parts, dim=1)
    return _with_last(out, query, key, value, padding_mask, dropout) if last else out


def windowed_attention(
    query, key, value, padding_mask, dropout, *, window: int, sinks: int, dilation: int = 1
):
    """The signature of `causal_attention`, for t = s, and for t = 1 in cached decoding."""
    t, s = query.shape[-2], key.shape[-2]
    sizes = {"window": window, "sinks": min(sinks, s), "dilation": dilation}
    if t == 1 and s > 1:
        return _one_query(query, key, value, padding_mask, dropout, **sizes)
    if t != s:
        raise InputError(f"sliding_window: {t} queries, {s} keys: it goes with no prefix")
    query = _in_blocks(query, window, dilation)  # (b, h, m, n, w, k)
    columns = [_with_sinks(x, **sizes) for x in (key, value)]  # (b, h, m, n, g + 2w, k)
    scores = query @ columns[0].mT / math.sqrt(query.shape[-1])  # (b, h, m, n, w, g + 2w)
    visible = _visible(query.shape[3], device=query.device, **sizes)  # (m, n, w, g + 2w)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if padding_mask is not None:
        hidden = _with_sinks(padding_mask.mT, **sizes).mT  # (b, 1, m, n, 1, g + 2w)
        scores = (scores + hidden).clamp(min=torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return rearrange(weights @ columns[1], "b h m n w k -> b h (n w m) k")[:, :, :t]


def _in_blocks(x, window: int, dilation: int):
    """(b, h, t, k) -> (b, h, m, n, w, k): n blocks of w positions m apart, 0 where there are none.

    Blocks with the same place in the third dimension have one remainder of positions by m.
    """
    missing = -x.shape[-2] % (window * dilation)
    x = F.pad(x, (0, 0, 0, missing))
    return rearrange(x, "b h (n w m) k -> b h m n w k", w=window, m=dilation)


def _with_sinks(x, *, window: int, sinks: int, dilation: int):
    """(b, h, t, k) -> (b, h, m, n, g + 2w, k): each block's g sinks, previous block, own block."""
    own = _in_blocks(x, window, dilation)
    previous = F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :, :-1]
    first = x[:, :, None, None, :sinks].expand(-1, -1, *own.shape[2:4], -1, -1)
    return torch.cat([first, previous, own], dim=4)


def _visible(blocks: int, *, window: int, sinks: int, dilation: int, device) -> torch.Tensor:
    """(m, n, w, g + 2w), true where a query sees a column; no key is seen in two columns."""
    remainder = torch.arange(dilation, device=device)[:, None, None, None]
    n = torch.arange(blocks, device=device)[:, None, None]
    query = (n * window + torch.arange(window, device=device)[:, None]) * dilation + remainder
    near = ((n - 1) * window + torch.arange(2 * window, device=device)) * dilation + remainder
    in_window = (near >= 0) & (near <= query) & (query - near < window * dilation)
    sink = torch.arange(sinks, device=device)
    return torch.cat([(sink <= query) & ~_in_reach(query - sink, window, dilation), in_window], 3)


def _in_reach(distance, window: int, dilation: int):
    """Whether a key so far back is in the window."""
    return (distance < window * dilation) & (distance % dilation == 0)


def _last_real(padding_mask, length: int, device) -> torch.Tensor:
    """The position of each row's last visible key, (b, 1, 1, 1); without a mask (1, 1, 1, 1)."""
    j = torch.arange(length, device=device)
    if padding_mask is None:
        return j[-1:, None, None, None]
    return torch.where(padding_mask == 0, j, 0).amax(dim=-1, keepdim=True)


def _one_query(query, key, value, padding_mask, dropout, *, window, sinks, dilation):
    """One query a row, (b, h, 1, k), at the position of the row's last visible key."""
    j = torch.arange(key.shape[-2], device=key.device)
    distance = _last_real(padding_mask, len(j), key.device) - j
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (b, h, 1, s)
    if padding_mask is not None:
        scores = (scores + padding_mask).clamp(min=torch.finfo(scores.dtype).min)
    far = ~_in_reach(distance, window, dilation) & (j >= sinks)
    scores = scores.masked_fill(far, torch.finfo(scores.dtype).min)
    return F.dropout(scores.softmax(dim=-1), dropout) @ value


def _with_last(out, query, key, value, padding_mask, dropout):
    """The same, but for each row's last real position, which sees all before it."""
    t = query.shape[-2]
    place = _last_real(padding_mask, t, query.device)
    last = query.gather(2, place.expand(*query.shape[:2], 1, query.shape[3]))
    sees_all = {"window": t, "sinks": 0, "dilation": 1}
    seen = _one_query(last, key, value, padding_mask, dropout, **sees_all)
    here = torch.arange(t, device=query.device)[:, None] == place
    return torch.where(here, seen, out)
