"""The picture of a run: training loss and the dev metric by epoch."""


def plot_curves(history: list[dict], path, metric: str) -> None:
    """Draw training loss and the dev metric by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = [record["epoch"] for record in history]
    figure, left = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    left.plot(epochs, [r["train_loss"] for r in history], "o-", color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss (nats a target)")
    left.yaxis.label.set_color("tab:blue")
    left.xaxis.get_major_locator().set_params(integer=True)
    right = left.twinx()
    right.plot(epochs, [r[metric] for r in history], "s-", color="tab:orange")
    right.set_ylabel(metric.replace("_", " "))
    right.yaxis.label.set_color("tab:orange")
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
