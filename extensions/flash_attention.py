"""FlashAttention: exact attention, tile by tile, so that no (t, s) matrix is ever kept.

    for each block of queries Q_i, of keys K_j that it sees:                Dao 2023, algorithm 1
        S = τ Q_i K_jᵀ,    m' = max(m, rowmax S),    P̃ = exp(S − m'),    τ = 1 / √k
        ℓ ← e^(m − m') ℓ + rowsum P̃,    O_i ← e^(m − m') O_i + (P̃ ∘ Z) V_j,    m ← m'
    O_i ← O_i / ℓ,    L_i = m + log ℓ

    from Q, K, V, O and L alone:    D = rowsum(dO ∘ O)                      algorithm 2
        for each tile again:    P = exp(S − L),    dS = P ∘ (Z ∘ dO_i V_jᵀ − D)
        dV_j += (Z ∘ P)ᵀ dO_i,    dQ_i += τ dS K_j,    dK_j += τ dSᵀ Q_i

Z is dropout, 0 or 1 / (1 − p); the backward pass draws it again from the seed (Dao et al. 2022,
appendix B.4). So memory grows with t, not t², and tiles that lie in the future are left out.

Differs from the paper in that the text below is PyTorch, for reading and for machines without a
GPU: it saves memory, not time; the kernels for GPUs are in engine/fast. A number that is drawn once
stands for the generator's state: a weight is dropped by a hash of it, of head, query and key. And a
query whose every key is hidden gets 0.

    python classifier.py --use_gpu --fine-tune-mode full-model --extension flash_attention
"""

import functools
import importlib.util
import os
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from engine.errors import InputError, optional
from engine.extension import Extension, replace_attention

WIDEST_HEAD = 128  # that Triton's kernels are for


@dataclass
class FlashAttention(Extension):
    """block: queries, and keys, in a tile; kernel: triton, torch or auto (triton on a GPU)."""

    block: int = 128
    kernel: str = "auto"

    recordable = True
    shardable = True

    def __post_init__(self):
        if self.block < 16 or self.block & (self.block - 1):
            raise InputError(
                f"flash_attention: block={self.block}: expected a power of two, at least 16"
            )
        if self.kernel not in ("auto", "torch", "triton"):
            raise InputError(
                f"flash_attention: kernel={self.kernel}: expected auto, torch or triton"
            )

    def prepare_model(self, model) -> None:
        attend = functools.partial(flash_attention, block=self.block, kernel=self.kernel)
        replace_attention(model, attend, technique="flash_attention", takes_prefix=True)


def flash_attention(
    query, key, value, padding_mask, dropout, *, block: int, kernel: str = "auto", lengths=None
):
    """The signature of `causal_attention`; a key is hidden where the padding mask is negative.

    lengths: (b,), how many of its s keys each row has, the others following them. The output there
    is 0 and, in Triton's kernels, costs nothing; what comes before needs no lengths to be right.
    """
    t, s = query.shape[-2], key.shape[-2]
    if t > s:
        raise ValueError(f"{t} queries, {s} keys: expected a key for each query, or more")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    hidden = None
    if padding_mask is not None:
        hidden = (padding_mask[:, 0, 0] < 0).expand(len(query), s)
    seed = torch.randint(2**31, (1,), device=query.device) if dropout else None
    tiles = Tiles(t, s, block, hidden=hidden, lengths=lengths, dropout=dropout, seed=seed)
    forward, backward = passes(kernel, query)
    return _Flash.apply(query, key, value, tiles, forward, backward)


def passes(kernel: str, query):
    """The forward and the backward function: the two below, or Triton's."""
    on_gpu = query.device.type == "cuda"
    fits = query.shape[-1] <= WIDEST_HEAD and query.dtype != torch.float64
    if kernel == "auto":
        installed = importlib.util.find_spec("triton") is not None
        kernel = "triton" if on_gpu and fits and installed else "torch"
    if kernel == "torch":
        return tiled_forward, tiled_backward
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError("flash_attention: kernel=triton: it needs a GPU: give kernel=auto")
    if not fits:
        raise InputError(
            f"flash_attention: kernel=triton: heads of {query.shape[-1]} in {query.dtype}, "
            f"expected at most {WIDEST_HEAD}, not in float64: give kernel=auto"
        )
    optional("triton", "flash_attention: kernel=triton")
    from engine.fast.flash_attention_triton import triton_backward, triton_forward

    return triton_forward, triton_backward


@dataclass(frozen=True)
class Tiles:
    """How the (t, s) matrix of weights is cut into blocks, and which weights there are."""

    t: int
    s: int
    block: int
    hidden: torch.Tensor | None = None  # (b, s), true where nobody sees the key
    lengths: torch.Tensor | None = None  # (b,)
    dropout: float = 0.0
    seed: torch.Tensor | None = None  # (1,)

    def rows(self) -> list[slice]:
        """Blocks of queries."""
        return _blocks(self.t, self.block)

    def columns(self, rows: slice) -> list[slice]:
        """The blocks of keys that do not lie wholly in the future of these queries."""
        return _blocks(rows.stop + self.s - self.t, self.block)

    def scores(self, query, key, rows: slice, columns: slice):
        """S of one tile, minus infinity where a query does not see a key; (b, h, block, block)."""
        scores = query[:, :, rows] @ key[:, :, columns].mT / query.shape[-1] ** 0.5
        place = {"device": query.device}
        i = torch.arange(rows.start, rows.stop, **place)[:, None] + self.s - self.t
        seen = torch.arange(columns.start, columns.stop, **place) <= i
        if self.hidden is not None:
            seen = seen & ~self.hidden[:, None, None, columns]
        if self.lengths is not None:
            seen = seen & (i < self.lengths.to(query.device)[:, None, None, None])
        return scores.masked_fill(~seen, -torch.inf)

    def kept(self, scores, rows: slice, columns: slice):
        """Z of one tile, the same whenever it is asked for."""
        if self.seed is None:
            return 1.0
        place = {"device": scores.device}
        heads = torch.arange(scores.shape[:2].numel(), **place).view(*scores.shape[:2], 1, 1)
        i = torch.arange(rows.start, rows.stop, **place)[:, None]
        j = torch.arange(columns.start, columns.stop, **place)
        draws = uniform(self.seed, (heads * self.t + i) * self.s + j)
        return (draws >= self.dropout).to(scores.dtype) / ((1 - self.dropout) or 1)


def uniform(seed, places):
    """A number in [0, 1) for each place, ints, by SplitMix64 (Steele et al. 2014)."""
    bits = places * _signed(0x9E3779B97F4A7C15) + seed
    bits = bits.bitwise_xor_(_shifted(bits, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits = bits.bitwise_xor_(_shifted(bits, 27)).mul_(_signed(0x94D049BB133111EB))
    return _shifted(bits, 40) / 2**24  # its last step changes only lower bits


def _signed(word: int) -> int:
    """64 bits as torch has them."""
    return word - 2**64 if word >= 2**63 else word


def _shifted(bits, by: int):
    """To the right, with zeros from the left."""
    return (bits >> by).bitwise_and_(2 ** (64 - by) - 1)


def _blocks(stop: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, stop)) for start in range(0, stop, size)]


class _Flash(torch.autograd.Function):
    """(b, h, t, k), twice (b, h, s, k) -> (b, h, t, k), saving those four and L (b, h, t)."""

    @staticmethod
    def forward(ctx, query, key, value, tiles, forward, backward):
        with torch.autocast(query.device.type, enabled=False):
            out, logsumexp = forward(query, key, value, tiles)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.tiles, ctx.run = tiles, backward
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        with torch.autocast(grad.device.type, enabled=False):
            return *ctx.run(grad, *ctx.saved_tensors, ctx.tiles), None, None, None


def tiled_forward(query, key, value, tiles: Tiles):
    """Algorithm 1: O (b, h, t, k), and L (b, h, t) in float32 or, of float64, float64."""
    out = torch.empty_like(query)
    query, key, value = _at_least_float32(query, key, value)
    logsumexp = query.new_empty(query.shape[:-1])
    for rows in tiles.rows():
        largest = query.new_full(logsumexp[:, :, rows, None].shape, torch.finfo(query.dtype).min)
        total = sums = 0.0
        for columns in tiles.columns(rows):
            scores = tiles.scores(query, key, rows, columns)
            now = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))  # (b, h, block, 1)
            weights, shrink = (scores - now).exp(), (largest - now).exp()
            total = shrink * total + weights.sum(dim=-1, keepdim=True)
            weights = weights * tiles.kept(scores, rows, columns)
            sums = shrink * sums + weights @ value[:, :, columns]  # (b, h, block, k)
            largest = now
        total = total.masked_fill(total == 0, 1)
        out[:, :, rows] = sums / total
        logsumexp[:, :, rows] = (largest + total.log()).squeeze(-1)
    return out, logsumexp


def tiled_backward(grad, query, key, value, out, logsumexp, tiles: Tiles):
    """Algorithm 2: dQ, dK and dV."""
    inputs = (query, key, value)
    grad, out, query, key, value = _at_least_float32(grad, out, query, key, value)
    scale = query.shape[-1] ** -0.5
    d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
    row_sum = (grad * out).sum(dim=-1, keepdim=True)  # D: (b, h, t, 1)
    for rows in tiles.rows():
        for columns in tiles.columns(rows):
            scores = tiles.scores(query, key, rows, columns)
            kept = tiles.kept(scores, rows, columns)
            weights = (scores - logsumexp[:, :, rows, None]).exp()
            d_value[:, :, columns] += (weights * kept).mT @ grad[:, :, rows]
            d_weights = grad[:, :, rows] @ value[:, :, columns].mT * kept
            d_scores = scale * weights * (d_weights - row_sum[:, :, rows])
            d_query[:, :, rows] += d_scores @ key[:, :, columns]
            d_key[:, :, columns] += d_scores.mT @ query[:, :, rows]
    return [d.to(x.dtype) for d, x in zip((d_query, d_key, d_value), inputs, strict=True)]


def _at_least_float32(*tensors):
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]
