"""FlashAttention's kernels for GPUs, in Triton: the tiles of extensions/flash_attention.py.

A program owns one block of queries of one head (`forward_kernel`, `query_gradient_kernel`) or one
of keys (`key_gradient_kernel`), and walks over the blocks of the other side that it has to do with.
Tensors lie as (b, t, h, k), as the linears leave them, so that training copies nothing. Products
take the inputs' type and add up in float32, the softmax is float32. A weight is dropped by Philox,
a number for each seed, head, query and key: so the mask depends on no block and is never stored.

Differs from the paper in that dQ has a kernel of its own, which computes the scores once more:
programs that add to one dQ together would need atomic sums, whose bits change from run to run.
Tested in Triton's interpreter and compiled for CUDA on a CPU; on a GPU nothing is measured yet.
"""

import torch
import triton
import triton.language as tl

MOST_ROWS, MOST_BYTES = 64, 8192  # of a block: more would not stay in registers
CHANGING = ["t", "s"]  # compile nothing for values of these


@triton.jit
def load_rows(pointer, rows, count, stride, HEAD: tl.constexpr, PADDED: tl.constexpr):
    """(rows, PADDED) of a matrix with `count` rows of HEAD numbers; zeros where it has none."""
    columns = tl.arange(0, PADDED)[None, :]
    inside = (rows[:, None] < count) & (columns < HEAD)
    return tl.load(pointer + rows[:, None] * stride + columns, mask=inside, other=0.0)


@triton.jit
def store_rows(pointer, block, rows, count, stride, HEAD: tl.constexpr, PADDED: tl.constexpr):
    """The inverse of `load_rows`, rounded to the type of the place."""
    columns = tl.arange(0, PADDED)[None, :]
    inside = (rows[:, None] < count) & (columns < HEAD)
    block = block.to(pointer.dtype.element_ty)
    tl.store(pointer + rows[:, None] * stride + columns, block, mask=inside)


@triton.jit
def real_keys(lengths, batch, s):
    """How many keys a row of the batch has."""
    length = s
    if lengths is not None:
        length = tl.load(lengths + batch)
    return length


@triton.jit
def seed_of_head(seed, group):
    """The number that the draws of one head of one row of the batch begin with."""
    number = group.to(tl.int64)
    if seed is not None:
        number += tl.load(seed)
    return number


@triton.jit
def seen_scores(left, right, rows, columns, hidden, shift, length, scale):
    """S of a tile, left rightᵀ · scale; minus infinity where a query does not see a key.

    rows and columns are the positions of queries and keys, each lying along its own side.
    """
    scores = tl.dot(left, tl.trans(right), input_precision="ieee") * scale
    seen = (columns <= rows + shift) & (rows + shift < length)
    if hidden is not None:
        seen = seen & (tl.load(hidden + columns, mask=columns < length, other=1) == 0)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def drop(weights, rows, columns, s, dropout, seed):
    """weights ∘ Z, Z being 0 with probability `dropout`, else 1 / (1 − dropout)."""
    kept = tl.rand(seed, rows * s + columns) >= dropout
    return tl.where(kept, weights / (1 - dropout), 0.0)


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    query, key, value, out, logsumexp, hidden, lengths, t, s, heads, scale, dropout, seed,
    HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """O and L of one block of queries."""
    group, start = tl.program_id(0), tl.program_id(1) * BLOCK
    batch, shift, stride = group // heads, s - t, heads * HEAD
    at_queries = batch.to(tl.int64) * t * stride + group % heads * HEAD
    at_keys = batch.to(tl.int64) * s * stride + group % heads * HEAD
    length, draws = real_keys(lengths, batch, s), seed_of_head(seed, group)
    rows = start + tl.arange(0, BLOCK)
    queries = load_rows(query + at_queries, rows, t, stride, HEAD, PADDED)
    largest = tl.full([BLOCK], -3.4e38, tl.float32)  # no score is as low, and it is finite
    total = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK, PADDED], tl.float32)
    end = tl.where(start + shift < length, tl.minimum(start + BLOCK + shift, length), 0)
    for first in range(0, end, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        keys = load_rows(key + at_keys, columns, s, stride, HEAD, PADDED)
        values = load_rows(value + at_keys, columns, s, stride, HEAD, PADDED)
        i, j = rows[:, None], columns[None, :]
        at_hidden = None if hidden is None else hidden + batch * s
        scores = seen_scores(queries, keys, i, j, at_hidden, shift, length, scale)
        now = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - now[:, None])
        shrink = tl.exp(largest - now)
        total = shrink * total + tl.sum(weights, 1)
        if seed is not None:
            weights = drop(weights, i, j, s, dropout, draws)
        added = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        sums = shrink[:, None] * sums + added
        largest = now
    total = tl.where(total == 0, 1.0, total)
    store_rows(out + at_queries, sums / total[:, None], rows, t, stride, HEAD, PADDED)
    at_rows = group.to(tl.int64) * t + rows
    tl.store(logsumexp + at_rows, largest + tl.log(total), mask=rows < t)


@triton.jit(do_not_specialize=["t"])
def delta_kernel(
    grad, out, delta, t, heads, HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):
    """D = rowsum(dO ∘ O) of one block of queries."""
    group = tl.program_id(0)
    stride = heads * HEAD
    at_queries = (group // heads).to(tl.int64) * t * stride + group % heads * HEAD
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    grads = load_rows(grad + at_queries, rows, t, stride, HEAD, PADDED).to(tl.float32)
    outs = load_rows(out + at_queries, rows, t, stride, HEAD, PADDED).to(tl.float32)
    tl.store(delta + group.to(tl.int64) * t + rows, tl.sum(grads * outs, 1), mask=rows < t)


@triton.jit(do_not_specialize=CHANGING)
def query_gradient_kernel(
    query, key, value, grad, logsumexp, delta, d_query,
    hidden, lengths, t, s, heads, scale, dropout, seed,
    HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dQ of one block of queries."""
    group, start = tl.program_id(0), tl.program_id(1) * BLOCK
    batch, shift, stride = group // heads, s - t, heads * HEAD
    at_queries = batch.to(tl.int64) * t * stride + group % heads * HEAD
    at_keys = batch.to(tl.int64) * s * stride + group % heads * HEAD
    length, draws = real_keys(lengths, batch, s), seed_of_head(seed, group)
    rows = start + tl.arange(0, BLOCK)
    queries = load_rows(query + at_queries, rows, t, stride, HEAD, PADDED)
    grads = load_rows(grad + at_queries, rows, t, stride, HEAD, PADDED)
    at_rows = group.to(tl.int64) * t + rows
    log_total = tl.load(logsumexp + at_rows, mask=rows < t, other=0.0)[:, None]
    row_sum = tl.load(delta + at_rows, mask=rows < t, other=0.0)[:, None]
    total = tl.zeros([BLOCK, PADDED], tl.float32)
    end = tl.where(start + shift < length, tl.minimum(start + BLOCK + shift, length), 0)
    for first in range(0, end, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        keys = load_rows(key + at_keys, columns, s, stride, HEAD, PADDED)
        values = load_rows(value + at_keys, columns, s, stride, HEAD, PADDED)
        i, j = rows[:, None], columns[None, :]
        at_hidden = None if hidden is None else hidden + batch * s
        scores = seen_scores(queries, keys, i, j, at_hidden, shift, length, scale)
        weights = tl.exp(scores - log_total)
        d_weights = tl.dot(grads, tl.trans(values), input_precision="ieee")
        if seed is not None:
            d_weights = drop(d_weights, i, j, s, dropout, draws)
        d_scores = weights * (d_weights - row_sum)
        total += tl.dot(d_scores.to(keys.dtype), keys, input_precision="ieee")
    store_rows(d_query + at_queries, total * scale, rows, t, stride, HEAD, PADDED)


@triton.jit(do_not_specialize=CHANGING)
def key_gradient_kernel(
    query, key, value, grad, logsumexp, delta, d_key, d_value,
    hidden, lengths, t, s, heads, scale, dropout, seed,
    HEAD: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys; its tiles lie on their side, (keys, queries)."""
    group, start = tl.program_id(0), tl.program_id(1) * BLOCK
    batch, shift, stride = group // heads, s - t, heads * HEAD
    at_queries = batch.to(tl.int64) * t * stride + group % heads * HEAD
    at_keys = batch.to(tl.int64) * s * stride + group % heads * HEAD
    length, draws = real_keys(lengths, batch, s), seed_of_head(seed, group)
    columns = start + tl.arange(0, BLOCK)
    keys = load_rows(key + at_keys, columns, s, stride, HEAD, PADDED)
    values = load_rows(value + at_keys, columns, s, stride, HEAD, PADDED)
    key_total = tl.zeros([BLOCK, PADDED], tl.float32)
    value_total = tl.zeros([BLOCK, PADDED], tl.float32)
    for first in range(tl.maximum(start - shift, 0) // BLOCK * BLOCK, length - shift, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        queries = load_rows(query + at_queries, rows, t, stride, HEAD, PADDED)
        grads = load_rows(grad + at_queries, rows, t, stride, HEAD, PADDED)
        at_rows = group.to(tl.int64) * t + rows
        log_total = tl.load(logsumexp + at_rows, mask=rows < t, other=0.0)[None, :]
        row_sum = tl.load(delta + at_rows, mask=rows < t, other=0.0)[None, :]
        i, j = rows[None, :], columns[:, None]
        at_hidden = None if hidden is None else hidden + batch * s
        scores = seen_scores(keys, queries, i, j, at_hidden, shift, length, scale)
        weights = tl.exp(scores - log_total)
        dropped = weights
        d_weights = tl.dot(values, tl.trans(grads), input_precision="ieee")
        if seed is not None:
            dropped = drop(weights, i, j, s, dropout, draws)
            d_weights = drop(d_weights, i, j, s, dropout, draws)
        value_total += tl.dot(dropped.to(grads.dtype), grads, input_precision="ieee")
        d_scores = weights * (d_weights - row_sum)
        key_total += tl.dot(d_scores.to(queries.dtype), queries, input_precision="ieee")
    store_rows(d_key + at_keys, key_total * scale, columns, s, stride, HEAD, PADDED)
    store_rows(d_value + at_keys, value_total, columns, s, stride, HEAD, PADDED)


def triton_forward(query, key, value, tiles):
    """`extensions.flash_attention.tiled_forward` through `forward_kernel`."""
    shape, settings = _shape(query, tiles), _settings(query, tiles)
    query, key, value = (_by_rows(x) for x in (query, key, value))
    out = torch.empty_like(query)
    logsumexp = query.new_empty(len(query), query.shape[2], tiles.t, dtype=torch.float32)
    with torch.cuda.device_of(query):
        forward_kernel[_grid(query, shape)](query, key, value, out, logsumexp, **settings, **shape)
    return out.transpose(1, 2), logsumexp


def triton_backward(grad, query, key, value, out, logsumexp, tiles):
    """`extensions.flash_attention.tiled_backward` through the other three kernels."""
    shape, settings = _shape(query, tiles), _settings(query, tiles)
    grad, query, key, value, out = (_by_rows(x) for x in (grad, query, key, value, out))
    inputs = (query, key, value)
    d_query, d_key, d_value = (torch.empty_like(x) for x in inputs)
    delta = torch.empty_like(logsumexp)
    with torch.cuda.device_of(query):
        delta_kernel[_grid(query, shape)](grad, out, delta, tiles.t, query.shape[2], **shape)
        saved = (*inputs, grad, logsumexp, delta)
        query_gradient_kernel[_grid(query, shape)](*saved, d_query, **settings, **shape)
        key_gradient_kernel[_grid(key, shape)](*saved, d_key, d_value, **settings, **shape)
    return [x.transpose(1, 2) for x in (d_query, d_key, d_value)]


def _by_rows(x):
    """(b, h, t, k) -> (b, t, h, k) in memory."""
    return x.transpose(1, 2).contiguous()


def _grid(x, shape: dict) -> tuple[int, int]:
    """Programs for every head and block of (b, t, h, k)."""
    return len(x) * x.shape[2], triton.cdiv(x.shape[1], shape["BLOCK"])


def _shape(query, tiles) -> dict:
    """What a kernel is compiled for: the head size, as a power of two too, and the block."""
    head = query.shape[-1]
    padded = max(triton.next_power_of_2(head), 16)
    block = min(tiles.block, MOST_ROWS, MOST_BYTES // (padded * query.element_size()))
    return {"HEAD": head, "PADDED": padded, "BLOCK": max(block, 16), "num_stages": 2}


def _settings(query, tiles) -> dict:
    hidden, lengths = tiles.hidden, tiles.lengths
    return {
        "hidden": None if hidden is None else hidden.to(torch.int8).contiguous(),
        "lengths": None if lengths is None else lengths.to(query.device, torch.int32),
        "t": tiles.t,
        "s": tiles.s,
        "heads": query.shape[1],
        "scale": query.shape[-1] ** -0.5,
        "dropout": tiles.dropout,
        "seed": tiles.seed,
    }
