"""Rounding to a grid of integers, in training too: the gradient passes as if nothing were rounded.

v̂ = s · ⌊clip(v / s, −Q_N, Q_P)⌉                Esser et al. 2020 (LSQ), eq. 1–2
∂v̂/∂v = 1 inside the range, 0 outside           straight through: Bengio et al. 2013
∂v̂/∂s = ⌊v/s⌉ − v/s, outside −Q_N or Q_P        LSQ, eq. 3
"""

import torch

UNROUNDED = 16  # with so many bits, or more, nothing is rounded


def quantize(x, scale, low, high) -> torch.Tensor:
    """Integers from low to high, kept in x's type."""
    return (x / scale).round().clamp(low, high)


def dequantize(integers, scale) -> torch.Tensor:
    return integers * scale


def fake_quantize(x, scale, low, high) -> torch.Tensor:
    """v̂ of v = x, with the gradients above."""
    return FakeQuantize.apply(x, scale, low, high)


class FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, low, high):
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high = low, high
        return dequantize(quantize(x, scale, low, high), scale)

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        steps = x / scale
        integers = steps.round()
        inside = (integers >= ctx.low) & (integers <= ctx.high)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            change = torch.where(inside, integers - steps, integers.clamp(ctx.low, ctx.high))
            grad_scale = (grad * change).sum_to_size(scale.shape)
        return grad * inside, grad_scale, None, None


def largest(bits: int) -> int:
    """Q_P."""
    return 2 ** (bits - 1) - 1


def weight_scale(weight, bits: int) -> torch.Tensor:
    """(out, in) -> (out, 1): the step of each output's weights."""
    widest = weight.abs().amax(dim=1, keepdim=True)
    return (widest / largest(bits)).clamp(min=torch.finfo(weight.dtype).tiny)
