"""AdamW over many tensors, each element read and written once: adamw.c for GPUs, in Triton.

A program moves one block of one tensor, in words of 16 bytes if all tensors begin at such a word
and the block is a whole one. Square root and quotient are rounded correctly, as in C.
"""

import triton
import triton.language as tl


@triton.jit
def elements(address, places, WHOLE: tl.constexpr):
    """Pointers to float32 numbers; WHOLE promises that 16 divides the address."""
    start = address.to(tl.pointer_type(tl.float32))
    if WHOLE:
        start = tl.multiple_of(start, 16)
    return start + places


@triton.jit
def move(
    param, grad, exp_avg, exp_avg_sq, places, inside,
    step_size, new1, old2, new2, tiny, kept, WHOLE: tl.constexpr,
):  # fmt: skip
    """The update of optimizer.py at these places, those that are inside."""
    param, grad = elements(param, places, WHOLE), elements(grad, places, WHOLE)
    exp_avg, exp_avg_sq = elements(exp_avg, places, WHOLE), elements(exp_avg_sq, places, WHOLE)
    x, g = tl.load(param, inside), tl.load(grad, inside)
    m, v = tl.load(exp_avg, inside), tl.load(exp_avg_sq, inside)
    m = m + new1 * (g - m)
    v = old2 * v + new2 * g * g
    x = kept * (x - tl.div_rn(step_size * m, tl.sqrt_rn(v) + tiny))
    tl.store(exp_avg, m, inside)
    tl.store(exp_avg_sq, v, inside)
    tl.store(param, x, inside)


@triton.jit
def adamw_kernel(
    table, blocks, new1, old2, new2, tiny, kept, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """table has a row for each tensor, adamw_rows.ROW; blocks has one for each program.

    ALIGNED promises that 16 divides all addresses.
    """
    own = blocks + 2 * tl.program_id(0)
    row = table + 6 * tl.load(own)
    start = tl.load(own + 1).to(tl.int64) * BLOCK
    param, grad = tl.load(row) + 4 * start, tl.load(row + 1) + 4 * start
    exp_avg, exp_avg_sq = tl.load(row + 2) + 4 * start, tl.load(row + 3) + 4 * start
    count = tl.minimum(tl.load(row + 4) - start, BLOCK).to(tl.int32)
    step_size = tl.load(row + 5).to(tl.float64, bitcast=True).to(tl.float32)
    places = tl.arange(0, BLOCK)
    if (count == BLOCK) & ALIGNED:
        move(
            param, grad, exp_avg, exp_avg_sq, places, None,
            step_size, new1, old2, new2, tiny, kept, WHOLE=True,
        )  # fmt: skip
    else:
        move(
            param, grad, exp_avg, exp_avg_sq, places, places < count,
            step_size, new1, old2, new2, tiny, kept, WHOLE=False,
        )  # fmt: skip
