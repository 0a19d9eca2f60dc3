"""Figures of a classifier's outputs: pure functions of labels and probabilities.

    ECE = Σ_m |B_m| / n · |acc(B_m) − conf(B_m)|        Guo et al. 2017, eq. 3

over bins B_m of equal width of the predicted class's probability.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.run_facts import wilson_interval

BINS = 10


@dataclass(frozen=True)
class Share:
    """How many of n rows are right, with a 95 % interval."""

    name: str
    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.value, self.n)


@dataclass(frozen=True)
class Bin:
    """Rows whose predicted class has a probability between low and high."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes): rows with this gold label and this prediction."""
    table = np.zeros((classes, classes), dtype=int)
    np.add.at(table, (labels, predicted), 1)
    return table


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> tuple[list[Bin], float]:
    """The bins that are not empty, and the ECE. probabilities: (n, classes)."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    right = predicted == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for place in range(BINS):
        inside = places == place
        n = int(inside.sum())
        if n:
            accuracy, mean = float(right[inside].mean()), float(confidence[inside].mean())
            interval = wilson_interval(accuracy, n)
            bins.append(Bin(place / BINS, (place + 1) / BINS, n, mean, accuracy, interval))
            error += n / len(labels) * abs(accuracy - mean)
    return bins, error


def by_label(labels: np.ndarray, predicted: np.ndarray, names) -> list[Share]:
    """The share of each gold label's rows that is right."""
    found = []
    for label, name in enumerate(names):
        mine = labels == label
        if mine.any():
            found.append(Share(str(name), int((predicted[mine] == label).sum()), int(mine.sum())))
    return found


def by_length(lengths: np.ndarray, right: np.ndarray, parts: int = 5) -> list[Share]:
    """Shares by number of tokens, in parts of about equally many rows; equal lengths stay one."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, parts + 1), method="lower"))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    found = []
    for i, (low, high) in enumerate(pairwise(edges)):
        last = i == len(edges) - 2
        inside = (lengths >= low) & ((lengths <= high) if last else (lengths < high))
        if inside.any():
            end = int(high) if last else int(high) - 1
            name = f"{int(low)}" if end <= low else f"{int(low)}–{end}"
            found.append(Share(name, int(right[inside].sum()), int(inside.sum())))
    return found


def most_confidently_wrong(labels: np.ndarray, probabilities: np.ndarray, most: int) -> list[int]:
    """The wrong rows, the most certain first."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")
    return wrong[order][:most].tolist()
