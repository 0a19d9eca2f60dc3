"""Charts as SVG that takes its colours from the page, so that it is right in light and dark."""

import io
import re

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from programs.report.statistics import Bin

COLOURS = {  # drawn in these, which nothing else has; shown in the page's own
    "#010101": "currentColor",
    "#020202": "var(--line)",
    "#030303": "var(--accent)",
    "#040404": "var(--second)",
    "#050505": "var(--soft)",
}
INK, LINE, ACCENT, SECOND, SOFT = COLOURS
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def svg(name: str, size: tuple[float, float], draw) -> str:
    """draw(figure) -> SVG to stand in a page; name: makes its ids its own."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for drawn, shown in COLOURS.items():
        text = text.replace(drawn, shown)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=<svg) height="[^"]*"| width="[\d.]+pt"| height="[\d.]+pt"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px inherit; font-size: \1px", text)
    return text


def curves(name: str, history: pd.DataFrame, metric: str, best_epoch: int) -> list[str]:
    """The losses by epoch, and the dev metric where that is no loss."""
    found = [c for c in ("train_loss", "dev_loss", "val_loss") if c in history]
    losses = {column: column.replace("_", " ") for column in found}
    drawn = [line_chart(f"{name}-loss", history, losses, "nats a target", best_epoch)]
    if metric not in losses:
        label = metric.replace("_", " ")
        drawn.append(line_chart(f"{name}-metric", history, {metric: label}, label, best_epoch))
    return drawn


def line_chart(name: str, history, columns: dict[str, str], unit: str, best_epoch: int) -> str:
    """Columns, by name and label, by epoch; the best one is marked."""

    def draw(figure):
        axes = figure.subplots()
        for (column, label), colour in zip(columns.items(), (SOFT, ACCENT), strict=False):
            colour = ACCENT if len(columns) == 1 else colour
            axes.plot(history["epoch"], history[column], "o-", ms=4, color=colour, label=label)
        axes.axvline(best_epoch, color=SECOND, lw=1, ls="--", label="best epoch")
        axes.set(xlabel="epoch", ylabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        if len(history) == 1:
            axes.set(xlim=(best_epoch - 0.5, best_epoch + 0.5), xticks=[best_epoch])

    return svg(name, (4, 2.9), draw)


def reliability(name: str, bins: list[Bin]) -> str:
    """Accuracy against confidence; on the diagonal both are the same."""

    def draw(figure):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--")
        widths = [b.high - b.low for b in bins]
        accuracies = [b.accuracy for b in bins]
        axes.bar([b.low for b in bins], accuracies, widths, align="edge", color=ACCENT, alpha=0.25)
        low = [max(b.accuracy - b.interval[0], 0) for b in bins]
        high = [max(b.interval[1] - b.accuracy, 0) for b in bins]
        points = [b.confidence for b in bins]
        axes.errorbar(points, accuracies, [low, high], fmt="o", ms=4, lw=1, color=ACCENT)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.set_aspect("equal")

    return svg(name, (3.6, 3.4), draw)
