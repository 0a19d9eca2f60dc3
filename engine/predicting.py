"""Which classes a model predicts for a loader's rows, and how many of them are right."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from engine.batches import forward_tokens, split_batch, to_device
from engine.devices import free_cache
from engine.errors import is_out_of_memory
from engine.progress_bar import Bar
from engine.sharding import parts_of

Result = TypeVar("Result")
# That a GPU reads at once without a gradient, memory permitting. It computes longer on so many rows
# than its host needs to start the kernels (an H200 in float32: 22 ms on SST's, and 14 to start
# them), so nothing is recorded here.
MOST_ROWS = 256


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of a loader's rows, in the file's order; labels where it has them.

    loss: the mean one of a row, in nats, if `predict` was asked for it.
    """

    sent_ids: list[str]
    predicted: list[int]
    labels: list[int]
    loss: float | None = None


def rows_at_once(device, on_cpu: int) -> int:
    """How many rows to read in evaluation, if a CPU reads so many."""
    return on_cpu if torch.device(device).type == "cpu" else max(on_cpu, MOST_ROWS)


@torch.no_grad()
def outputs(
    model, batches: Iterable[dict], device, work: Callable[[dict], Result]
) -> Iterator[tuple[dict, Result]]:
    """Each batch with work(batch) on the device, dropout off; nobody waits for the device here.

    From when its memory runs out, a batch comes in pieces of half as many rows; not with sharded
    weights, for which all workers make the same calls.
    """
    model.eval()
    most, may_cut = None, not parts_of(model)
    for batch in batches:
        pieces = [batch] if most is None else split_batch(batch, most)
        while pieces:
            try:
                result = work(to_device(pieces[0], device))
            except RuntimeError as error:
                rows = len(pieces[0]["sent_ids"])
                if not is_out_of_memory(error) or rows <= 1 or not may_cut:
                    raise
                most = -(-rows // 2)
            else:
                yield pieces.pop(0), result
                continue
            free_cache(torch.device(device))  # here the error and what it held are gone
            pieces = [small for piece in pieces for small in split_batch(piece, most)]


def predict(model, loader, device, forward=forward_tokens, loss_fn=None) -> Predictions:
    """The likeliest class of every row of the loader; only at the end is a GPU waited for.

    loss_fn(logits, batch): the loss summed over a batch; None: of rows without labels.
    """

    def work(batch: dict) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = forward(model, batch)
        return logits.argmax(dim=-1), loss_fn and loss_fn(logits, batch)

    classes, losses, indices, sent_ids, labels = [], [], [], [], []
    batches = Bar(loader, "eval")
    for batch, (best, loss) in outputs(model, batches, device, work):
        classes.append(best)
        losses.append(loss)
        rows = len(batch["sent_ids"])
        indices += batch.get("indices", range(len(indices), len(indices) + rows))
        sent_ids += batch["sent_ids"]
        labels += batch["labels"].flatten().tolist() if "labels" in batch else []
    predicted = torch.cat(classes).tolist()
    columns = (sent_ids, predicted, labels)
    order = sorted(range(len(indices)), key=indices.__getitem__)
    ordered = ([column[i] for i in order] if column else [] for column in columns)
    loss = sum(torch.stack(losses).tolist()) / len(predicted) if loss_fn else None
    return Predictions(*ordered, loss)


def accuracy_and_f1(predictions: Predictions) -> dict[str, float]:
    """Share of right rows, and F1 averaged over the classes (macro)."""
    from sklearn.metrics import accuracy_score, f1_score

    y_true, y_pred = predictions.labels, predictions.predicted
    return {
        "acc": float(accuracy_score(y_true, y_pred)),
        "f1": float(f1_score(y_true, y_pred, average="macro")),
    }
