"""Linears whose weights are packed integers, and how a model gets them.

    y = Σ_j x_j s_j (q_j − z_j) + bias                                 weights only
    y = s_x s (Σ_j p_j q_j − z Σ_j p_j) + bias                         dynamic: sums of int32
    p_j = ⌊x_j / s_x⌉,   s_x = max|x| / 127

Inputs that are rounded token by token while the model runs: Yao et al. 2022 (ZeroQuant), section
4.1. The bias stays in floating point. Differs from the paper in that it has no kernels of its own:
packed weights are unpacked in each call.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from engine.devices import widest_float
from engine.errors import InputError
from extensions.rounding import UNROUNDED, largest, quantize, weight_scale
from programs.quantize.grid import INT8, Grid, Rounded, pack, round_to_nearest, unpack

# A layer's linears; those that read the same input stand together.
LINEARS = (
    ("self_attention.query", "self_attention.key", "self_attention.value"),
    ("attention_dense",),
    ("interm_dense",),
    ("out_dense",),
)
CUDA_ROWS, CUDA_MULTIPLE = 32, 8  # torch._int_mm on a GPU: more than 16 rows, sizes a multiple of 8


def integer_matmul(x, weight) -> torch.Tensor:
    """Exact x wᵀ of int8: (n, in) and (out, in) -> int32 (n, out)."""
    n, sizes = len(x), weight.shape
    on_gpu = x.is_cuda
    has_kernel = hasattr(torch, "_int_mm") and x.device.type in ("cpu", "cuda")
    if not has_kernel or (on_gpu and any(size % CUDA_MULTIPLE for size in sizes)):
        return float_integer_matmul(x, weight)
    if on_gpu and n < CUDA_ROWS:
        x = F.pad(x, (0, 0, 0, CUDA_ROWS - n))
    return torch._int_mm(x, weight.T)[:n]


def float_integer_matmul(x, weight) -> torch.Tensor:
    """The same without kernels on integers: in float64 no sum of so few products is rounded."""
    place = x.device if widest_float(x.device) == torch.float64 else "cpu"
    product = x.to(place).double() @ weight.to(place).double().T
    return product.to(torch.int32).to(x.device)


class QuantizedWeight(nn.Module):
    """A matrix as packed integers, scales and, if the grid is asymmetric, zero points.

    All of them are buffers; `weight` is the matrix in floating point.
    """

    def __init__(self, shape, grid: Grid, device=None):
        super().__init__()
        rows, self.columns = shape
        self.bits, width = grid.bits, grid.width(self.columns)
        integers = torch.zeros(shape, dtype=torch.int8, device=device)
        self.register_buffer("packed", pack(integers, self.bits))
        self.register_buffer("scale", torch.zeros(rows, self.columns // width, device=device))
        zero_point = None if grid.symmetric else torch.zeros_like(self.scale, dtype=torch.int8)
        self.register_buffer("zero_point", zero_point)

    def hold(self, rounded: Rounded) -> None:
        self.packed.copy_(pack(rounded.integers, self.bits))
        self.scale.copy_(rounded.scale)
        if self.zero_point is not None:
            self.zero_point.copy_(rounded.zero_point)

    def integers(self) -> torch.Tensor:
        return unpack(self.packed, self.bits, self.columns)

    @property
    def weight(self) -> torch.Tensor:
        return Rounded(self.integers(), self.scale, self.zero_point).weight


class QuantizedLinear(QuantizedWeight):
    """(..., in) -> (..., out): weights become floating-point numbers in each call."""

    def __init__(self, shape, grid: Grid, device=None):
        super().__init__(shape, grid, device)
        self.register_buffer("bias", torch.zeros(shape[0], device=device))

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class DynamicLinear(QuantizedLinear):
    """(..., in) -> (..., out): inputs are rounded to int8 too, each token by its own scale."""

    def forward(self, x):
        tokens = x.flatten(0, -2).float()  # (n, in)
        scale, limit = weight_scale(tokens, INT8), largest(INT8)
        rounded = quantize(tokens, scale, -limit, limit).to(torch.int8)
        sums = integer_matmul(rounded, self.packed)
        if self.zero_point is not None:
            sums = sums - rounded.sum(dim=1, keepdim=True, dtype=sums.dtype) * self.zero_point.T
        y = sums * scale * self.scale.T + self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


class QuantizedEmbedding(QuantizedWeight):
    """Token ids -> rows; the tied output layer asks for all of `weight`, in each call."""

    def forward(self, ids):
        return self.packed[ids] * self.scale[ids]


# -- in a model --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What becomes integers, and how: a model can be rebuilt by it, to be filled from a file."""

    grid: Grid
    dynamic: bool = False
    embedding: bool = False

    def __post_init__(self):
        if self.dynamic and (self.grid.bits, self.grid.group_size) != (INT8, 0):
            raise InputError(
                f"--mode dynamic: {self.grid.bits} bits, group_size {self.grid.group_size}: "
                f"integers are multiplied as int8 with a scale a row: give --bits 8 --group_size 0"
            )

    @property
    def rounds(self) -> bool:
        return self.grid.bits < UNROUNDED

    def check(self, gpt) -> None:
        """Refuse what does not fit the model, before any work is done."""
        for names in LINEARS if self.rounds else ():
            linear = gpt.gpt_layers[0].get_submodule(names[0])
            columns = linear.weight.shape[1]
            if columns % self.grid.width(columns):
                raise InputError(
                    f"--group_size {self.grid.group_size}: does not divide the {columns} inputs of "
                    f"{names[0]}: give a divisor of it, or 0 for whole rows"
                )

    def replace(self, layer, name: str, rounded: Rounded | None = None) -> QuantizedLinear:
        """Put integers in the place of a layer's linear, zeros if there are none yet."""
        linear = layer.get_submodule(name)
        kind = DynamicLinear if self.dynamic else QuantizedLinear
        new = kind(linear.weight.shape, self.grid, linear.weight.device)
        new.bias.copy_(linear.bias.detach())
        if rounded is not None:
            new.hold(rounded)
        layer.set_submodule(name, new)
        return new

    def replace_embedding(self, gpt, empty: bool) -> None:
        weight, grid = gpt.word_embedding.weight.detach(), Grid(INT8)
        new = QuantizedEmbedding(weight.shape, grid, weight.device)
        if not empty:
            new.hold(round_to_nearest(weight, grid))
        gpt.word_embedding = new


@torch.no_grad()
def quantize_model(gpt, recipe: Recipe, empty: bool = False) -> None:
    """Round to nearest what the recipe names; `empty` only makes the places for integers."""
    recipe.check(gpt)
    for layer in gpt.gpt_layers if recipe.rounds else ():
        for name in (name for names in LINEARS for name in names):
            weight = layer.get_submodule(name).weight
            recipe.replace(layer, name, None if empty else round_to_nearest(weight, recipe.grid))
    if recipe.embedding:
        recipe.replace_embedding(gpt, empty)


@torch.no_grad()
def dequantize_model(model) -> None:
    """The inverse, but for what rounding took away: plain linears and a plain embedding."""
    places = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedWeight)}
    for name, module in places.items():
        weight, (rows, columns) = module.weight, module.weight.shape
        if isinstance(module, QuantizedEmbedding):
            plain = nn.Embedding(rows, columns, device="meta")
        else:
            plain = nn.Linear(columns, rows, device="meta")
            plain.bias = nn.Parameter(module.bias.clone())
        plain.weight = nn.Parameter(weight)
        model.set_submodule(name, plain)


def tensor_bytes(model) -> int:
    """Of all parameters and buffers, each counted once."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())
