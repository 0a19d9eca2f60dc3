"""Which classes a model predicts for a loader's rows, and how many of them are right."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from engine.batches import forward_tokens, to_device


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of a loader's rows, in the file's order; labels where it has them."""

    sent_ids: list[str]
    predicted: list[int]
    labels: list[int]


@torch.no_grad()
def predict(model, loader, device, forward=forward_tokens) -> Predictions:
    """The likeliest class of every row of the loader; only at the end is a GPU waited for."""
    model.eval()
    classes, indices, sent_ids, labels = [], [], [], []
    for batch in tqdm(loader, desc="eval", leave=False, disable=None):
        classes.append(forward(model, to_device(batch, device)).argmax(dim=-1))
        rows = len(batch["sent_ids"])
        indices += batch.get("indices", range(len(indices), len(indices) + rows))
        sent_ids += batch["sent_ids"]
        labels += batch["labels"].flatten().tolist() if "labels" in batch else []
    predicted = torch.cat(classes).tolist()
    columns = (sent_ids, predicted, labels)
    order = sorted(range(len(indices)), key=indices.__getitem__)
    return Predictions(*([column[i] for i in order] if column else [] for column in columns))


def accuracy_and_f1(predictions: Predictions) -> dict[str, float]:
    """Share of right rows, and F1 averaged over the classes (macro)."""
    from sklearn.metrics import accuracy_score, f1_score

    y_true, y_pred = predictions.labels, predictions.predicted
    return {
        "acc": float(accuracy_score(y_true, y_pred)),
        "f1": float(f1_score(y_true, y_pred, average="macro")),
    }
