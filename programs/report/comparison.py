"""Several runs beside each other: means over seeds, and whether one method is better."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from programs.report.outputs import Classified
from programs.report.runs import Run, differences, groups_of
from programs.significance.significance import Comparison, compare, verdict

SAMPLES, SEED = 10_000, 11711


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; figures: of each one's best epoch."""

    name: str
    runs: list[Run]

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def metric(self) -> str:
        return self.runs[0].metric

    @property
    def figures(self) -> np.ndarray:
        return np.array([run.best[self.metric] for run in self.runs])

    @property
    def mean(self) -> float:
        return float(self.figures.mean())

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None of a single run."""
        return float(self.figures.std(ddof=1)) if len(self.runs) > 1 else None


@dataclass(frozen=True)
class Pair:
    """Two groups of a task, A and B, on the same dev rows, and in words what that comes to."""

    names: list[str]
    result: Comparison
    words: str


def compared(runs: list[Run]) -> list[Group]:
    groups = groups_of(runs)
    names = differences(groups)
    return [Group(name, group) for name, group in zip(names, groups, strict=True)]


def pairs(groups: list[Group], found: dict) -> list[Pair]:
    """Each two groups of a task; found: path of a run -> its `Classified`, where it has one."""
    results = []
    for one, other in combinations(groups, 2):
        rows = [found.get(run.path) for run in one.runs + other.runs]
        if one.task != other.task or None in rows or not same_rows(rows):
            continue
        right = np.array([classified.right for classified in rows])
        a, b = right[: len(one.runs)], right[len(one.runs) :]
        result = compare(a, b, samples=SAMPLES, seed=SEED)
        words = verdict(result, ["A", "B"], right.shape[1]).partition("; next:")[0]
        results.append(Pair([one.name, other.name], result, words))
    return results


def same_rows(rows: list[Classified]) -> bool:
    first = rows[0]
    return all(
        other.sent_ids == first.sent_ids and np.array_equal(other.labels, first.labels)
        for other in rows
    )
