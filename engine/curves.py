"""The picture of a run: training loss and the dev metric by epoch."""

from engine.plots import loss_and_metric, picture


def plot_curves(history: list[dict], path, metric: str) -> None:
    """Draw training loss and the dev metric by epoch."""
    epochs, losses, values = (
        [record[key] for record in history] for key in ("epoch", "train_loss", metric)
    )
    with picture(path, 6, 3.5) as figure:
        left, right = loss_and_metric(figure, epochs, losses, values)
        left.set(xlabel="epoch", ylabel="training loss (nats a target)")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set_ylabel(metric.replace("_", " "))
