"""Score against time as a small SVG that stretches: paths in percent, labels beside them in HTML.

Points are strokes of no length with round ends, so that they stay round however it is stretched.
"""

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Chart:
    """Paths in a box of 100 × 100, y downwards. ticks: (label, percent from the top)."""

    points: str
    test_points: str
    steps: str  # the best so far
    ticks: list[tuple[str, float]]
    first: str
    last: str
    label: str  # the same in words


def chart(rows: pd.DataFrame, best: pd.DataFrame, test: pd.DataFrame | None = None) -> Chart | None:
    """rows: time and value of submissions; best: of those that were the best yet; test: on test.

    None where there is nothing to see: fewer than two moments.
    """
    every = pd.concat([rows, *([test] if test is not None else [])])
    times = pd.to_datetime(every["time"])
    if times.nunique() < 2:
        return None
    start, end = times.min(), times.max()
    ticks = nice_ticks(every["value"].min(), every["value"].max())

    def places(frame: pd.DataFrame) -> list[tuple[float, float]]:
        x = 100 * ((pd.to_datetime(frame["time"]) - start) / (end - start))
        y = 100 * (ticks[-1] - frame["value"]) / (ticks[-1] - ticks[0])
        return list(zip(x.round(1), y.round(1), strict=True))

    return Chart(
        points=_dots(places(rows)),
        test_points=_dots(places(test)) if test is not None else "",
        steps=_steps(places(best)),
        ticks=[(f"{t:g}", 100 * (ticks[-1] - t) / (ticks[-1] - ticks[0])) for t in ticks],
        first=f"{start.day} {start:%B}",
        last=f"{end.day} {end:%B}",
        label=(
            f"{len(rows)} submissions from {start.day} {start:%B} to {end.day} {end:%B}; "
            f"the best rises from {best['value'].iloc[0]:.1f} to {best['value'].iloc[-1]:.1f}"
        ),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten, from below low to above high."""
    span = max(high - low, 1.0)
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(power * k for k in (1, 2, 5, 10) if span / (power * k) <= 4)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 2)
    return [round(step * k, 6) for k in range(first, last + 1)]


def _dots(places: list[tuple[float, float]]) -> str:
    return "".join(f"M{x:g} {y:g}h0" for x, y in places)


def _steps(places: list[tuple[float, float]]) -> str:
    (x, y), *rest = places
    return f"M{x:g} {y:g}" + "".join(f"H{x:g}V{y:g}" for x, y in rest) + "H100"
