"""What `scaling.py` measured: the curves' fitted laws, as a Markdown table and as a picture."""

import numpy as np

from benchmarks.power_law import fit_power_law
from benchmarks.report import plain_numbers
from engine.plots import picture

PEERS = ("starter", "ours")
AXES = {"length": "positions", "batch": "rows", "size": "parameters"}
FIGURES = {"seconds": "seconds a step", "peak_mb": "peak memory, MB"}


def series(points: dict[str, dict], peer: str, part: str) -> list[dict]:
    """The points of a curve, by x."""
    chosen = [point for name, point in points.items() if name.startswith(f"{peer}, {part} ")]
    return sorted(chosen, key=lambda point: point["x"])


def fits(points: dict[str, dict]) -> dict[str, dict]:
    """The fitted law of each curve of three points or more."""
    laws = {}
    for peer in PEERS:
        for part in AXES:
            curve = series(points, peer, part)
            for figure in FIGURES if len(curve) > 2 else ():
                xs, ys = [point["x"] for point in curve], [point[figure] for point in curve]
                laws[f"{peer}, {part}, {figure}"] = fit_power_law(xs, ys)
    return laws


def table(results: dict) -> str:
    """Markdown: a row a curve with its exponents of time and of memory."""
    lines = ["| grows with | peer | time ~ | memory ~ |", "|---|---|---|---|"]
    for part, axis in AXES.items():
        for peer in PEERS:
            laws = [results["fits"].get(f"{peer}, {part}, {figure}") for figure in FIGURES]
            if all(laws):
                cells = " | ".join(f"{axis}^{law['exponent']:.2f}" for law in laws)
                lines.append(f"| {part} | {peer} | {cells} |")
    return "\n".join(lines)


def draw(results: dict, path) -> None:
    """Time above, memory below, a column for what grows; points, and the fitted laws as lines."""
    with picture(path, 11, 6) as figure:
        grid = figure.subplots(2, 3, sharex="col")
        for row, (name, label) in zip(grid, FIGURES.items(), strict=True):
            row[0].set_ylabel(label)
            for axes, (part, axis) in zip(row, AXES.items(), strict=True):
                for peer, color in zip(PEERS, ("tab:gray", "tab:blue"), strict=True):
                    _curve(axes, results, f"{peer}, {part}, {name}", color)
                axes.set(xscale="log", yscale="log", xlabel=axis if name == "peak_mb" else "")
                plain_numbers(axes.yaxis)
                axes.grid(alpha=0.3)
                if axes.lines:
                    xs = axes.lines[0].get_xdata()
                    axes.set_xticks(xs, [_short(x) for x in xs], minor=False)
                    axes.minorticks_off()
                    axes.legend(fontsize=8)
        figure.suptitle(results["hardware"], fontsize=10)


def _short(x: float) -> str:
    return f"{x / 1e6:,.0f}M" if x >= 1e6 else f"{x:,}"


def _curve(axes, results: dict, name: str, color: str) -> None:
    peer, part, figure = name.split(", ")
    curve = series(results["points"], peer, part)
    law = results["fits"].get(name)
    label = f"{peer}: p = {law['exponent']:.2f}" if law else peer
    if curve:
        xs = [point["x"] for point in curve]
        axes.plot(xs, [point[figure] for point in curve], "o", color=color, label=label)
    if law:
        x = np.geomspace(xs[0], xs[-1], 50)
        axes.plot(x, law["constant"] + law["factor"] * x ** law["exponent"], color=color)
