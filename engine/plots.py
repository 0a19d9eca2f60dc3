"""Pictures, drawn without a display and written as PNG files."""

import contextlib

from engine.files import atomic_path


@contextlib.contextmanager
def picture(path, width: float, height: float):
    """Give an empty matplotlib `Figure`; when the block ends well, it is written to `path`.

    width, height: inches. The file appears whole or not at all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def loss_and_metric(figure, x: list[float], loss: list[float], metric: list[float]):
    """Draw two curves, the loss by the left axis and the metric by the right one; give both."""
    left = figure.subplots()
    right = left.twinx()
    for axes, values, marker, color in (
        (left, loss, "o", "tab:blue"),
        (right, metric, "s", "tab:orange"),
    ):
        axes.plot(x, values, marker=marker, markersize=4, color=color)
        axes.yaxis.label.set_color(color)
    return left, right
