"""GPTQ's rounding: weights that are not yet rounded make up for the error of those that are.

    H = 2 X Xᵀ,   H⁻¹ = Uᵀ U                              U upper triangular, by Cholesky
    e = (w_j − quant(w_j)) / U_jj,   W_:,j: ← W_:,j: − e U_j,j:          for each column j

Frantar et al. 2023 ("OPTQ"), algorithm 1. H is a running mean over the tokens of a text, with 1 %
of its mean diagonal on top of its diagonal. Inside a block of columns the updates are done at once,
those of the columns behind it in one product at its end: the block's size changes the time and not
the result. With act_order the columns of the largest H_jj come first. The scale of a group is found
when the turn of its first column comes; with act_order all are found before.

The grid is one of programs/quantize/grid.py. Differs from the paper in that a row is rounded to
nearest if that gives a smaller error in the norm of H; and in inputs that were always 0: their
weights are rounded to nearest.
"""

from dataclasses import dataclass

import torch

from engine.errors import InputError
from programs.quantize.grid import Grid, Rounded, round_to_nearest


@dataclass(frozen=True)
class Options:
    """Of algorithm 1; block: columns that are updated at once."""

    block: int = 128
    damping: float = 0.01
    act_order: bool = False


class Hessian:
    """H (in, in), the mean of 2 x xᵀ over all tokens so far, float64."""

    def __init__(self, size: int, device):
        self.matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x) -> None:
        """x: (n, in)."""
        if len(x):
            self.tokens += len(x)
            share = len(x) / self.tokens
            self.matrix.lerp_((x.T @ x).to(self.matrix) * (2 / len(x)), share)


def gptq(weight, hessian, grid: Grid, options: Options) -> Rounded:
    """Round (out, in) by algorithm 1; hessian: (in, in), float64."""
    left, columns = weight.double(), weight.shape[1]
    order = torch.arange(columns, device=weight.device)
    if options.act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    left, places = left[:, order], order.tolist()
    upper = cholesky_of_inverse(hessian[order][:, order], options.damping)
    (scale, zero_point), width = grid.fit(weight), grid.width(columns)
    integers = torch.empty_like(left, dtype=torch.int8)
    moving = width < columns and not options.act_order
    # where a group's scale is found on the way, all that came before has to be in its columns
    block = -(-options.block // width) * width if moving else options.block
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = left.new_zeros(len(left), end - start)
        for j in range(start, end):
            group = places[j] // width
            if moving and j % width == 0:
                found = grid.fit(left[:, j : j + width])
                scale[:, group : group + 1], zero_point[:, group : group + 1] = found
            step, zero = scale[:, group].double(), zero_point[:, group].double()
            steps = grid.steps(left[:, j], step, zero)
            integers[:, places[j]] = (steps + zero).to(torch.int8)
            error = (left[:, j] - steps * step) / upper[j, j]
            left[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return Rounded(integers, scale, zero_point)


def cholesky_of_inverse(hessian, damping: float) -> torch.Tensor:
    """U of H⁻¹ = Uᵀ U, H dampened; inputs that were always 0 are cut off from the others."""
    dead = hessian.diagonal() == 0
    damped = hessian + torch.diag(dead.to(hessian))
    mean = hessian.diagonal().sum() / (~dead).sum().clamp(min=1)
    damped.diagonal().add_(damping * mean)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise InputError(
            f"--damping {damping}: the inputs of a linear depend on each other too much to be "
            f"inverted: give a larger one, or a longer calibration text"
        ) from error


def row_errors(weight, rounded: Rounded, hessian) -> torch.Tensor:
    """δ H δᵀ of each row's δ = w − ŵ: twice its mean squared error in the output. (out,)"""
    change = weight.double() - rounded.weight.double()
    return (change @ hessian * change).sum(dim=1)


def best_rows(weight, hessian, grid: Grid, options: Options) -> tuple[Rounded, dict]:
    """(integers, summed errors): each row by algorithm 1, or to the nearest if that is better."""
    by_gptq = gptq(weight, hessian, grid, options)
    nearest = round_to_nearest(weight, grid)
    errors = [row_errors(weight, each, hessian) for each in (by_gptq, nearest)]
    worse = (errors[0] > errors[1])[:, None]
    chosen = Rounded(
        torch.where(worse, nearest.integers, by_gptq.integers),
        torch.where(worse, nearest.scale, by_gptq.scale),
        torch.where(worse, nearest.zero_point, by_gptq.zero_point),
    )
    sums = {"gptq": float(torch.minimum(*errors).sum()), "nearest": float(errors[1].sum())}
    return chosen, sums
