"""The figures as CSV and JSON: for everybody in the site's folder, for staff in another one."""

import json
from pathlib import Path

import pandas as pd

from course.leaderboard.aliases import pseudonym
from course.leaderboard.ranking import TASKS
from course.leaderboard.scoring import OVERALL
from engine.errors import excerpt
from engine.files import atomic_write

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for the begin of one
COLUMNS = ["split", "task", "rank", "team", "value", "low", "high", "second", "time"]


def safe_cell(value):
    """Text that no spreadsheet computes: an apostrophe before what begins like a formula."""
    text = isinstance(value, str) and value.lstrip(" ").startswith(FORMULA)
    return f"'{value}" if text else value


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    with atomic_write(path) as file:
        frame.map(safe_cell).to_csv(file, index=False, lineterminator="\n")


def write_public(folder: Path, rankings: dict[str, pd.DataFrame], names: dict[int, str]) -> None:
    """leaderboard.csv and leaderboard.json; rankings: split -> what ranking.best gives."""
    rows = pd.concat(list(rankings.values()))
    rows = rows.assign(team=rows["team"].map(names)).astype({"team": str})[COLUMNS]
    rows = rows.round({"value": 3, "low": 3, "high": 3, "second": 3})
    write_csv(folder / "leaderboard.csv", rows)
    meaning = {
        task: {"figure": what, "second": second} for task, (_, what, second) in TASKS.items()
    }
    records = json.loads(rows.to_json(orient="records", force_ascii=False))
    with atomic_write(folder / "leaderboard.json") as file:
        json.dump({"tasks": meaning, "ranking": records}, file, ensure_ascii=False, indent=1)


def write_staff(folder: Path, frame: pd.DataFrame, unread: dict[str, str]) -> int:
    """problems.csv and teams.csv, with what students must not see; gives the count of problems.

    unread: file -> why it is no submission.
    """
    problems = frame[frame["problem"].notna()]
    whole = problems["task"] == OVERALL
    told = problems[~whole].groupby(["submission", "split"]).size().index
    places = pd.MultiIndex.from_frame(problems[["submission", "split"]])
    problems = problems[~(whole & places.isin(told))].drop_duplicates(["submission", "problem"])
    problems = problems[["source", "name", "time", "split", "task", "problem"]]
    others = pd.DataFrame([{"source": s, "problem": p} for s, p in unread.items()])
    problems = pd.concat([problems, others]) if len(others) else problems
    write_csv(folder / "problems.csv", problems.map(_line))
    teams = frame[["team", "name", "members"]].drop_duplicates().sort_values("team").map(_line)
    write_csv(folder / "teams.csv", teams.assign(pseudonym=teams["team"].map(pseudonym)))
    return len(problems)


def _line(value):
    return excerpt(value, 1000) if isinstance(value, str) else value
