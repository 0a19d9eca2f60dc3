"""NF4: blocks of weights as indices into 16 levels that are equally likely for a normal variable.

    q_i    quantiles of N(0, 1), scaled to [−1, 1], 0 among them   Dettmers et al. 2023, section 3
    ŵ_j = c · q_i(j),   c = max|w| over the block, i(j) nearest to w_j / c
    c ≈ mean + s · k,   k an integer of 8 bits                     section 3, double quantization

With blocks of 64 weights and 256 constants a weight takes 4 + 8/64 + 32/(64 · 256) = 4.127 bits.
Differs from the paper in k, an integer in the place of its float of 8 bits: the constants lie close
to their mean, where equal steps are finer.
"""

import torch
from torch import nn
from torch.nn import functional as F

CONSTANTS = 256  # to one s
MOST = 127  # the largest k


def levels() -> torch.Tensor:
    """(16,): 7 quantiles below 0, 8 above it, and 0, so that 0 is stored as it is.

    The outermost ones leave out a tail of (1/30 + 1/32) / 2, the middle of what 15 and 16 equally
    likely bins would.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    above, below = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, n + 1, dtype=torch.float64)[:-1])
        for n in (8, 7)
    )
    values = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (values / values[-1]).float()


class NF4Linear(nn.Module):
    """A frozen linear whose weight is kept in NF4: (..., in) -> (..., out).

    Its tensors are parameters without a gradient: as the weights that they stand for they belong to
    no checkpoint of a fine-tuned model, and to the digest of what such a checkpoint depends on.
    """

    def __init__(self, linear: nn.Linear, *, block: int, double: bool):
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.block = block
        table = levels().to(weight.device)
        self.register_buffer("pairs", table[unpacked(every_byte(table.device))], persistent=False)
        indices, constants = quantized(weight, table, block)
        self.indices, self.bias = frozen(packed(indices)), frozen(linear.bias.detach().clone())
        self.constants = frozen(constants)
        self.mean = self.steps = None
        if double:
            parts = doubly_quantized(constants)
            self.mean, self.steps, self.constants = map(frozen, parts)

    @property
    def weight(self) -> torch.Tensor:
        """ŵ (out, in), computed anew each time."""
        constants = self.constants
        if self.mean is not None:
            constants = once_quantized(self.mean, self.steps, constants)
        values = F.embedding(self.indices.int(), self.pairs)  # two levels a byte
        blocks = values.view(len(constants), -1) * constants[:, None]
        size = self.out_features * self.in_features
        return blocks.flatten()[:size].view(self.out_features, self.in_features)

    def forward(self, x):
        return Product.apply(x, self)


class Product(torch.autograd.Function):
    """x ŵᵀ + b, which keeps neither x nor ŵ for the backward pass: ŵ is computed again there."""

    @staticmethod
    def forward(ctx, x, linear):
        ctx.linear, ctx.dtype = linear, x.dtype
        return F.linear(x, linear.weight, linear.bias)

    @staticmethod
    def backward(ctx, grad):
        return (grad @ ctx.linear.weight.to(grad.dtype)).to(ctx.dtype), None


def frozen(tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def quantized(weight, table, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of levels (blocks, block) and the blocks' constants c (blocks,).

    Zeros fill up the last block. A block of zeros has the constant 0.
    """
    flat = weight.float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    constants = blocks.abs().amax(dim=1)
    scaled = blocks / constants.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    middles = (table[1:] + table[:-1]) / 2
    return torch.bucketize(scaled, middles).to(torch.uint8), constants


def packed(indices) -> torch.Tensor:
    """Two indices a byte, in order."""
    pairs = indices.view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def unpacked(bytes_) -> torch.Tensor:
    """The inverse of `packed`, (n, 2), as numbers that index."""
    return torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).int()


def every_byte(device) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8, device=device)


def doubly_quantized(constants) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean (), steps s (n / 256,), integers k (n,) of 8 bits) of constants c (n,)."""
    mean = constants.mean()
    blocks = F.pad(constants - mean, (0, -len(constants) % CONSTANTS)).view(-1, CONSTANTS)
    steps = blocks.abs().amax(dim=1) / MOST
    scaled = blocks / steps.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return mean, steps, scaled.round().to(torch.int8).flatten()[: len(constants)].clone()


def once_quantized(mean, steps, integers) -> torch.Tensor:
    """c (n,) again; none is negative."""
    each = steps.repeat_interleave(CONSTANTS)[: len(integers)]
    return (mean + each * integers).clamp(min=0)
