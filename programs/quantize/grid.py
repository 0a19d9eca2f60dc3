"""Numbers on a grid: integers with a scale for each row or group of columns, packed into bytes.

    w ≈ s (q − z)                                                    z: the integer of weight 0
    s = max|w| / Q,   z = 0,   Q = 2^(b−1) − 1                       symmetric, q from −Q to Q
    s = (max w − min w) / (2^b − 1),   z = ⌊−min w / s⌉ − 2^(b−1)    asymmetric, all 2^b integers

Jacob et al. 2018, eq. 1; scales for groups of columns: Yao et al. 2022 (ZeroQuant), section 4.1.
0 is always in the range. The asymmetric grid is that of the code published with Frantar et al. 2023
(GPTQ), and so is the search for a scale: s times 1, 0.99, …, 0.21, whichever gives the smallest
error. Differs from the paper in how a group is cut: g columns of one row; and from the code in the
error, which is Σ (w − ŵ)² here and Σ |w − ŵ|^2.4 there.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.errors import InputError
from extensions.rounding import UNROUNDED, dequantize, largest, quantize, weight_scale

BITS = (2, 3, 4, 8)
INT8 = 8
KINDS = ("symmetric", "asymmetric")
SCALES = ("max", "mse")
SHARES = [share / 100 for share in range(100, 20, -1)]  # of the widest scale, which are tried


@dataclass(frozen=True)
class Grid:
    """Which numbers a weight may have.

    group_size: neighboring columns with a common scale, 0 for whole rows. kind: KINDS. scale: max,
    so that the extremes fit, or mse, of the smallest squared error.
    """

    bits: int
    group_size: int = 0
    kind: str = "symmetric"
    scale: str = "max"

    def __post_init__(self):
        if self.bits not in (*BITS, UNROUNDED):
            listed = ", ".join(map(str, BITS))
            raise InputError(
                f"--bits {self.bits}: expected one of {listed}, or {UNROUNDED} for no rounding"
            )
        if self.group_size < 0:
            raise InputError(f"--group_size {self.group_size}: expected at least 0")

    @property
    def symmetric(self) -> bool:
        return self.kind == "symmetric"

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        most = largest(self.bits)
        return (-most if self.symmetric else -most - 1), most

    def width(self, columns: int) -> int:
        """How many columns share a scale."""
        return self.group_size or columns

    def split(self, weight) -> torch.Tensor:
        """(out, in) -> (out, groups, width)."""
        return weight.unflatten(1, (-1, self.width(weight.shape[1])))

    def fit(self, weight) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, in) -> scales, float32, and zero points, int8: (out, groups) each."""
        groups = self.split(weight).flatten(0, 1).float()
        scale, zero_point = self._widest(groups)
        if self.scale == "mse":
            scale = self._searched(groups, scale, zero_point)
        return scale.view(len(weight), -1), zero_point.to(torch.int8).view(len(weight), -1)

    def _widest(self, groups) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, width) -> (n, 1) each: no weight is cut off."""
        if self.symmetric:
            scale = weight_scale(groups, self.bits)
            return scale, torch.zeros_like(scale)
        below = (-groups.amin(dim=1, keepdim=True)).clamp(min=0)
        above = groups.amax(dim=1, keepdim=True).clamp(min=0)
        low, high = self.ends
        scale = ((below + above) / (high - low)).clamp(min=torch.finfo(groups.dtype).tiny)
        return scale, low + (below / scale).round()

    def _searched(self, groups, scale, zero_point) -> torch.Tensor:
        """The best of SHARES for each group; zero points stay, as both ends of a range shrink."""
        best, least = scale, torch.full_like(scale, torch.inf)
        for share in SHARES:
            tried = scale * share
            rounded = dequantize(self.steps(groups, tried, zero_point), tried)
            error = (groups - rounded).square().sum(dim=1, keepdim=True)
            best = torch.where(error < least, tried, best)
            least = torch.minimum(error, least)
        return best

    def steps(self, weight, scale, zero_point) -> torch.Tensor:
        """q − z, kept in the weight's type: how many scales each weight becomes."""
        low, high = self.ends
        return quantize(weight, scale, low - zero_point, high - zero_point)


@dataclass(frozen=True)
class Rounded:
    """Integers, and what they stand for."""

    integers: torch.Tensor  # (out, in), int8
    scale: torch.Tensor  # (out, groups), float32
    zero_point: torch.Tensor | None = None  # (out, groups), int8; None: all are 0

    @property
    def weight(self) -> torch.Tensor:
        """(out, in)."""
        steps = self.integers.unflatten(1, (self.scale.shape[1], -1))
        if self.zero_point is not None:
            steps = steps - self.zero_point.to(self.scale)[:, :, None]
        return dequantize(steps, self.scale[:, :, None]).flatten(1)


def round_to_nearest(weight, grid: Grid) -> Rounded:
    scale, zero_point = grid.fit(weight)
    columns = (each.to(weight.dtype)[:, :, None] for each in (scale, zero_point))
    steps = grid.steps(grid.split(weight), *columns)
    integers = (steps + zero_point[:, :, None]).flatten(1).to(torch.int8)
    return Rounded(integers, scale, zero_point)


# -- bytes -----------------------------------------------------------------------------------------


def pack(integers, bits: int) -> torch.Tensor:
    """int8 (out, in) -> uint8 (out, bytes), the first in the lowest bits; 8 bits stay.

    As many as fill whole bytes are packed together: of 3 bits, eight into three bytes.
    """
    if bits == INT8:
        return integers
    shifts, byte_shifts = _shifts(bits, integers.device)
    unsigned = (integers + 2 ** (bits - 1)).to(shifts.dtype)
    unsigned = F.pad(unsigned, (0, -unsigned.shape[1] % len(shifts)))
    words = (unsigned.unflatten(1, (-1, len(shifts))) << shifts).sum(dim=-1, dtype=shifts.dtype)
    return ((words[:, :, None] >> byte_shifts) & 255).flatten(1).to(torch.uint8)


def unpack(packed, bits: int, columns: int) -> torch.Tensor:
    """The inverse of `pack`."""
    if bits == INT8:
        return packed
    shifts, byte_shifts = _shifts(bits, packed.device)
    parts = packed.to(shifts.dtype).unflatten(1, (-1, len(byte_shifts))) << byte_shifts
    words = parts.sum(dim=-1, keepdim=True, dtype=shifts.dtype)
    unsigned = (words >> shifts) & (2**bits - 1)
    return unsigned.flatten(1)[:, :columns].to(torch.int8) - 2 ** (bits - 1)


def _shifts(bits: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the integers of a word begin in it, and where its bytes do."""
    size = math.lcm(bits, 8)
    dtype = torch.uint8 if size == 8 else torch.int32
    return tuple(torch.arange(0, size, step, dtype=dtype, device=device) for step in (bits, 8))
