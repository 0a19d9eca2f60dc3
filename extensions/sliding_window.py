"""Sliding-window attention: each position sees the w last ones, and the first few if wanted.

    position i sees j ≤ i  ⟺  i − j < w  or  j < g          Beltagy et al. 2020, section 3.1

g "attention sinks" at the start of a long text keep it stable (Xiao et al. 2023, section 3.2).
Queries are cut into blocks of w; a block's window lies in its own and the previous block of keys,
so time and memory grow with t · w, not t². Differs from the paper in that the window looks back
only, as a causal model must, is equally wide in all layers, and has no dilation.

    python classifier.py --fine-tune-mode full-model --extension sliding_window:window=128,sinks=4
"""

import functools
import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch.nn import functional as F

from engine.errors import InputError
from engine.extension import Extension, replace_attention


@dataclass
class SlidingWindow(Extension):
    window: int = 128
    sinks: int = 0

    recordable = True
    shardable = True

    def __post_init__(self):
        if self.window < 1 or self.sinks < 0:
            raise InputError(
                f"sliding_window: window={self.window}, sinks={self.sinks}: expected a window of "
                f"at least 1 and at least 0 sinks"
            )

    def prepare_model(self, model) -> None:
        attend = functools.partial(windowed_attention, window=self.window, sinks=self.sinks)
        replace_attention(model, attend, technique="sliding_window", takes_prefix=False)


def windowed_attention(query, key, value, padding_mask, dropout, *, window: int, sinks: int):
    """The signature of `causal_attention`, for t = s, and for t = 1 in cached decoding."""
    t, s = query.shape[-2], key.shape[-2]
    if t == 1 and s > 1:
        return _last_query(query, key, value, padding_mask, dropout, window=window, sinks=sinks)
    if t != s:
        raise InputError(f"sliding_window: {t} queries, {s} keys: it goes with no prefix")
    sinks = min(sinks, t)
    blocks = -(-t // window)
    missing = blocks * window - t
    query = _in_blocks(F.pad(query, (0, 0, 0, missing)), window)  # (b, h, n, w, k)
    columns = [_with_sinks(x, window, sinks, missing) for x in (key, value)]  # (b, h, n, g + 2w, k)
    scores = query @ columns[0].mT / math.sqrt(query.shape[-1])  # (b, h, n, w, g + 2w)
    visible = _visible(blocks, window, sinks, query.device)  # (n, w, g + 2w)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if padding_mask is not None:
        hidden = _with_sinks(padding_mask.mT, window, sinks, missing).mT  # (b, 1, n, 1, g + 2w)
        scores = (scores + hidden).clamp(min=torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return rearrange(weights @ columns[1], "b h n w k -> b h (n w) k")[:, :, :t]


def _in_blocks(x, window: int):
    return rearrange(x, "b h (n w) k -> b h n w k", w=window)


def _with_sinks(x, window: int, sinks: int, missing: int):
    """(b, h, t, k) -> (b, h, n, g + 2w, k): each block's g sinks, previous block and own block."""
    own = _in_blocks(F.pad(x, (0, 0, 0, missing)), window)
    previous = F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    first = x[:, :, None, :sinks].expand(-1, -1, own.shape[2], -1, -1)
    return torch.cat([first, previous, own], dim=3)


def _visible(blocks: int, window: int, sinks: int, device) -> torch.Tensor:
    """(n, w, g + 2w), true where a query sees a column; no key is seen in two columns."""
    n = torch.arange(blocks, device=device)[:, None, None]
    query = n * window + torch.arange(window, device=device)[:, None]  # positions
    sink = torch.arange(sinks, device=device).expand(blocks, 1, sinks)
    near = (n - 1) * window + torch.arange(2 * window, device=device)
    in_window = (near >= 0) & (near <= query) & (query - near < window)
    return torch.cat([query - sink >= window, in_window], dim=2)


def _last_query(query, key, value, padding_mask, dropout, *, window: int, sinks: int):
    """One new query a row against its cached keys; its position is that of its last visible key."""
    j = torch.arange(key.shape[-2], device=key.device)
    i = j[-1]
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (b, h, 1, s)
    if padding_mask is not None:
        i = torch.where(padding_mask == 0, j, -1).amax(dim=-1, keepdim=True)  # (b, 1, 1, 1)
        scores = (scores + padding_mask).clamp(min=torch.finfo(scores.dtype).min)
    far = (i - j >= window) & (j >= sinks)
    scores = scores.masked_fill(far, torch.finfo(scores.dtype).min)
    return F.dropout(scores.softmax(dim=-1), dropout) @ value
