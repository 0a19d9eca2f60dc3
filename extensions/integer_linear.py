"""The linears of a model that was trained by qat, as the integers that a kernel would multiply."""

from dataclasses import dataclass

import torch

from engine.errors import InputError
from extensions.qat import divided, quantized
from extensions.rounding import UNROUNDED, largest, quantize, weight_scale


@dataclass(frozen=True)
class IntegerLinear:
    """What a kernel on integers needs; without a grid its inputs stay in floating point."""

    weight: torch.Tensor  # (out, in), int8, also where there are fewer bits
    scale: torch.Tensor  # (out,)
    bias: torch.Tensor  # (out,)
    grid: dict | None  # the inputs' scale, low and high
    alpha: torch.Tensor | None  # (in,), for the normalisation before to take in

    def __call__(self, x):
        """(..., in) -> (..., out): sums of products of integers, exact in float64."""
        x, scale = x if self.alpha is None else x * self.alpha, self.scale
        if self.grid is not None:
            x, scale = quantize(x, **self.grid), scale * self.grid["scale"]
        sums = x.double() @ self.weight.double().T
        return (sums * scale + self.bias).to(self.bias.dtype)


@torch.no_grad()
def export_integers(model) -> dict[str, IntegerLinear]:
    """The linears of a trained model, by the names of their places."""
    exported = {}
    for name, place in quantized(model).items():
        source, limit = place.source, largest(place.bits)
        rounds_inputs = source.bits < UNROUNDED
        if place.bits >= UNROUNDED or (rounds_inputs and not source.known()):
            raise InputError(f"{name}: bits={place.bits}, or not trained yet: it has no integers")
        weight = divided(place.linear.weight, source.alpha)
        scale = weight_scale(weight, place.bits)
        exported[name] = IntegerLinear(
            weight=quantize(weight, scale, -limit, limit).to(torch.int8),
            scale=scale[:, 0],
            bias=place.linear.bias.clone(),
            grid=source.grid() if rounds_inputs else None,
            alpha=source.alpha,
        )
    return exported
