"""Numbers on a grid: integers with a scale for each row or group of columns, packed into bytes.

    w ≈ s q,   s = max|w| / Q,   Q = 2^(b−1) − 1,   q = ⌊w / s⌉        symmetric, −Q … Q

Scales for groups of columns: Yao et al. 2022 (ZeroQuant), section 4.1. Differs from the paper in
how a group is cut: g columns of one row.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.errors import InputError
from extensions.rounding import UNROUNDED, dequantize, largest, quantize, weight_scale

BITS = (2, 4, 8)  # of which a byte holds a whole number
INT8 = 8


@dataclass(frozen=True)
class Grid:
    """bits of a weight; group_size: neighboring columns with a common scale, 0 for whole rows."""

    bits: int
    group_size: int = 0

    def __post_init__(self):
        if self.bits not in (*BITS, UNROUNDED):
            listed = ", ".join(map(str, BITS))
            raise InputError(
                f"--bits {self.bits}: expected one of {listed}, or {UNROUNDED} for no rounding"
            )
        if self.group_size < 0:
            raise InputError(f"--group_size {self.group_size}: expected at least 0")

    def width(self, columns: int) -> int:
        """How many columns share a scale."""
        return self.group_size or columns

    def scales(self, weight) -> torch.Tensor:
        """(out, in) -> (out, groups), float32."""
        groups = self.split(weight).flatten(0, 1).float()
        return weight_scale(groups, self.bits).view(len(weight), -1)

    def split(self, weight) -> torch.Tensor:
        """(out, in) -> (out, groups, width)."""
        return weight.unflatten(1, (-1, self.width(weight.shape[1])))


@dataclass(frozen=True)
class Rounded:
    """Integers, and what they are multiples of."""

    integers: torch.Tensor  # (out, in), int8
    scale: torch.Tensor  # (out, groups), float32

    @property
    def weight(self) -> torch.Tensor:
        """(out, in)."""
        groups = self.integers.unflatten(1, (self.scale.shape[1], -1))
        return dequantize(groups, self.scale[:, :, None]).flatten(1)


def round_to_nearest(weight, grid: Grid) -> Rounded:
    scale, limit = grid.scales(weight), largest(grid.bits)
    integers = quantize(grid.split(weight), scale.to(weight.dtype)[:, :, None], -limit, limit)
    return Rounded(integers.flatten(1).to(torch.int8), scale)


def pack(integers, bits: int) -> torch.Tensor:
    """int8 (out, in) -> uint8 (out, ⌈in · bits / 8⌉), the first in the lowest bits; 8 bits stay."""
    if bits == INT8:
        return integers
    shifts = _shifts(bits, integers.device)
    unsigned = (integers + 2 ** (bits - 1)).to(torch.uint8)
    unsigned = F.pad(unsigned, (0, -unsigned.shape[1] % len(shifts)))
    return (unsigned.unflatten(1, (-1, len(shifts))) << shifts).sum(dim=-1, dtype=torch.uint8)


def unpack(packed, bits: int, columns: int) -> torch.Tensor:
    """The inverse of `pack`."""
    if bits == INT8:
        return packed
    parts = (packed[:, :, None] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return parts.flatten(1)[:, :columns].to(torch.int8) - 2 ** (bits - 1)


def _shifts(bits: int, device) -> torch.Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
