"""Find the mistake that explains a tensor: compare it with what each known mistake would give.

A reference is a function whose options are the right ones by default. A `Fault` sets some of them
wrongly. If the submission's tensor is what one fault gives, or two together, then these are named,
and only their lines of the rubric are lost.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations

import torch

TOLERANCE = 1e-4  # absolute and relative; float32 makes about 1e-6 of numbers like these


@dataclass(frozen=True)
class Fault:
    """line: of the rubric, which it costs; says: the diagnosis; options: of the reference."""

    line: str
    says: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """Some lines of the rubric that are measured together.

    lines: name -> what it asks for. measure(ask, draw) gives line -> what is wrong, for lines that
    fail; ask: `Session.ask`, draw: a `Draw`.
    """

    section: str
    lines: dict[str, str]
    measure: Callable


@dataclass(frozen=True)
class Explanation:
    """faults: those that give exactly the tensor found, () if it is right, None if none do."""

    faults: tuple[Fault, ...] | None
    difference: str = ""

    def problems(self, lines: Iterable[str]) -> dict[str, str]:
        """Line -> what is wrong; a tensor that nothing explains fails them all."""
        if self.faults is None:
            return dict.fromkeys(lines, self.difference)
        found = {}
        for fault in self.faults:
            found[fault.line] = "; ".join(filter(None, [found.get(fault.line), fault.says]))
        return found


class Draw:
    """Random inputs from a secret seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=self.generator)


def explain(found, reference: Callable, faults: Iterable[Fault], accepted=({},)) -> Explanation:
    """Which of the faults, at most two, give the tensor that was found.

    reference(**options) -> tensor; accepted: sets of options that are all right.
    """
    faults = list(faults)
    for number in range(3):
        for chosen in combinations(faults, number):
            names = [name for fault in chosen for name in fault.options]
            if len(set(names)) < len(names):
                continue
            wrong = {name: value for fault in chosen for name, value in fault.options.items()}
            if any(_gives(reference(**(right | wrong)), found) for right in accepted):
                return Explanation(chosen)
    return Explanation(None, difference(found, reference(**accepted[0])))


def _gives(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether a hypothesis gives the tensor; one that gives hardly any number explains nothing."""
    share = expected.isfinite().float().mean() if expected.numel() else 0.0
    return float(share) > 0.2 and is_close(found, expected)


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal in shape and, but for rounding, in every value; NaN equals NaN."""
    if found.shape != expected.shape:
        return False
    return torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How and where a tensor differs: shape, then NaN, then the largest difference."""
    if found.shape != expected.shape:
        return f"found shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if not found.isfinite().all():
        place = tuple((~found.isfinite()).nonzero()[0].tolist())
        return f"found {float(found[place])} at {place}, expected finite numbers"
    apart = (found - expected).abs()
    place = tuple(torch.unravel_index(apart.argmax(), apart.shape))
    at = tuple(int(index) for index in place)
    return (
        f"found {float(found[at]):.4f} at {at}, expected {float(expected[at]):.4f}: the largest "
        f"difference, and no mistake that the autograder knows explains it"
    )


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not is_close(one, other)
