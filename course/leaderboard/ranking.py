"""Who is how good, by the intervals of the best submissions.

A team stands in a ranking by its best submission for it, of equal ones the earliest. Its rank is
one more than the number of teams that are better beyond doubt, by the intervals of 95 %:

    rank(a) = 1 + |{b: low(b) > high(a)}|                   Chiang et al. 2024, "Chatbot Arena"

Teams whose intervals overlap with the best one's share rank 1, and so on down. Differs from a rank
by figures alone in that a difference within chance gives no better rank; who is listed first within
a rank is the one with the higher figure.
"""

import numpy as np
import pandas as pd

from course.leaderboard.scoring import OVERALL

TASKS = {  # task -> (its name, what its figures are, what the second ones are)
    OVERALL: ("Overall", "mean of the tasks", ""),
    "finetune-sst": ("SST", "accuracy, full model", "macro-F1"),
    "finetune-cfimdb": ("CFIMDB", "accuracy, full model", "macro-F1"),
    "pretrain-sst": ("SST, last layer", "accuracy, last linear layer", "macro-F1"),
    "pretrain-cfimdb": ("CFIMDB, last layer", "accuracy, last linear layer", "macro-F1"),
    "paraphrase": ("Paraphrase", "accuracy", "macro-F1"),
    "sonnet": ("Sonnets", "chrF, whole sonnets", "chrF of the continuation"),
}


def best(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """A row for each team and task: that of its best submission, with its `rank` among the teams.

    Sorted by task, then rank, figure and time.
    """
    rows = frame[(frame["split"] == split) & frame["value"].notna()]
    rows = rows.sort_values(["value", "time", "submission"], ascending=[False, True, True])
    rows = rows.drop_duplicates(["task", "team"]).assign(rank=0)
    for _, task in rows.groupby("task"):
        rows.loc[task.index, "rank"] = ranks(task["low"].to_numpy(), task["high"].to_numpy())
    order = {task: place for place, task in enumerate(TASKS)}
    rows["place"] = rows["task"].map(order)
    by = ["place", "rank", "value", "time", "team"]
    return rows.sort_values(by, ascending=[True, True, False, True, True]).drop(columns="place")


def ranks(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(n,), (n,) -> (n,): one more than the number of intervals that lie wholly above one's own."""
    return 1 + len(low) - np.searchsorted(np.sort(low), high, side="right")


def frontier(frame: pd.DataFrame, split: str, task: str = OVERALL) -> pd.DataFrame:
    """The submissions that were better on a task than all before them, in time's order."""
    rows = frame[(frame["split"] == split) & (frame["task"] == task) & frame["value"].notna()]
    rows = rows.sort_values(["time", "submission"])
    return rows[rows["value"] > rows["value"].cummax().shift(fill_value=-1.0)]
