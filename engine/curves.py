"""The picture of a run: its losses by the left axis, the dev metric by the right one, by epoch."""

from engine.plots import picture

LOSSES = {"train_loss": "-", "dev_loss": "--", "val_loss": "--"}  # with the style of their curves
LOSS_COLOR, METRIC_COLOR, BEST_COLOR = "tab:blue", "tab:orange", "tab:green"


def plot_curves(history: list[dict], path, metric: str, best_epoch: int, title: str = "") -> None:
    """Draw every loss and the metric that chose the best epoch, and mark that epoch."""
    epochs = [record["epoch"] for record in history]
    with picture(path, 6.5, 4) as figure:
        left = figure.subplots()
        axes = dict.fromkeys((name for name in LOSSES if name in history[0]), left)
        left.set_ylabel("loss (nats a target)", color=LOSS_COLOR)
        if metric not in LOSSES:
            axes[metric] = right = left.twinx()
            right.set_ylabel(_words(metric), color=METRIC_COLOR)
        for name, where in axes.items():
            values = [record[name] for record in history]
            color = LOSS_COLOR if name in LOSSES else METRIC_COLOR
            how = {"marker": "o" if name in LOSSES else "s", "markersize": 5, "color": color}
            if LOSSES.get(name) == "--":
                how["markerfacecolor"] = "white"
            where.plot(epochs, values, LOSSES.get(name, "-"), label=_words(name), **how)
        best = f"best epoch, {best_epoch}: {history[best_epoch][metric]:.3f}"
        left.axvline(best_epoch, color=BEST_COLOR, linestyle=":", label=best)
        left.set(title=title, xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
        left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        figure.legend(
            loc="outside lower center", ncols=4, frameon=False, fontsize="small", handlelength=3
        )


def _words(name: str) -> str:
    return name.replace("_", " ").replace("train ", "training ")
