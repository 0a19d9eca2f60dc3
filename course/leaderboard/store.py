"""The history in SQLite: teams, their submissions, and every figure, each computed once.

What one submission scores is written in one transaction as soon as it is known, so that a killed
run goes on where it ended. Figures belong to the answers by which they were computed (`gold`, a
split's fingerprint): those by other answers stay in the file and are never mixed with these.
"""

import json
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from course.leaderboard.scoring import OVERALL, SPLITS, Figure, Result, overall
from course.leaderboard.sources import Submission
from engine.errors import InputError

TEST_TRIES = 3  # submissions a team that are scored on test, those that fail not counted
SCHEMA = """
CREATE TABLE IF NOT EXISTS teams (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS submissions (
    id INTEGER PRIMARY KEY, team INTEGER NOT NULL REFERENCES teams, digest TEXT NOT NULL,
    time TEXT NOT NULL, source TEXT NOT NULL,
    on_test INTEGER,  -- 1: scored on test, 0: the team's tries were spent, NULL: not decided
    UNIQUE (team, digest));
CREATE TABLE IF NOT EXISTS figures (
    digest TEXT, gold TEXT, split TEXT, task TEXT,
    value REAL, second REAL, low REAL, high REAL, problem TEXT,
    again INTEGER NOT NULL,  -- 1: the scoring failed, to be tried again
    PRIMARY KEY (digest, gold, split, task));
CREATE TABLE IF NOT EXISTS sonnets (digest TEXT, gold TEXT, texts TEXT, PRIMARY KEY (digest, gold));
"""
FRAME = """
SELECT s.id AS submission, s.team, t.name, t.key AS members, s.time, s.source, s.digest, s.on_test,
       f.split, f.task, f.value, f.second, f.low, f.high, f.problem
FROM submissions s JOIN teams t ON t.id = s.team JOIN figures f ON f.digest = s.digest
WHERE (f.split = 'dev' AND f.gold = ?) OR (f.split = 'test' AND f.gold = ? AND s.on_test = 1)
ORDER BY s.time, s.id, f.split, f.task
"""
TRIES = """
SELECT count(*) FROM submissions s WHERE s.team = ? AND s.on_test = 1 AND EXISTS (
    SELECT 1 FROM figures f WHERE f.digest = s.digest AND f.split = 'test' AND f.value IS NOT NULL)
"""


class History:
    """gold: split -> the fingerprint of its answers."""

    def __init__(self, path: Path, gold: dict[str, str]):
        self.gold = gold
        try:
            self.connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA foreign_keys = ON")
            self.connection.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{path}: no history of a leaderboard ({error}): move the file away"
            ) from error

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def _transaction(self):
        self.connection.execute("BEGIN IMMEDIATE")
        with self.connection:  # commits at its end, or takes everything back
            yield

    def _one(self, query: str, *values):
        return self.connection.execute(query, values).fetchone()

    def add(self, submission: Submission, digest: str) -> int:
        """Enter a submission and give its id; the same bytes of the same team are entered once."""
        with self._transaction():
            self.connection.execute(
                "INSERT INTO teams (key, name) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET name = excluded.name",
                (submission.team, submission.name),
            )
            [team] = self._one("SELECT id FROM teams WHERE key = ?", submission.team)
            self.connection.execute(
                "INSERT OR IGNORE INTO submissions (team, digest, time, source) "
                "VALUES (?, ?, ?, ?)",
                (team, digest, submission.time.isoformat(), submission.path.name),
            )
            query = "SELECT id FROM submissions WHERE team = ? AND digest = ?"
            return self._one(query, team, digest)[0]

    def to_score(self, submission: int) -> tuple[str, ...]:
        """The splits on which a submission lacks figures now.

        That its team's tries on test are spent is decided here, and stays.
        """
        team, digest, on_test = self._one(
            "SELECT team, digest, on_test FROM submissions WHERE id = ?", submission
        )
        query = "SELECT split, gold FROM figures WHERE digest = ? AND NOT again"
        known = set(self.connection.execute(query, (digest,)))
        missing = [split for split, gold in self.gold.items() if (split, gold) not in known]
        if "test" in self.gold and on_test is None:
            on_test = int(self._one(TRIES, team)[0] < TEST_TRIES)
            if not on_test or "test" not in missing:
                self._set_on_test(submission, on_test)
        return tuple(split for split in missing if split == "dev" or on_test)

    def _set_on_test(self, submission: int, value: int) -> None:
        query = "UPDATE submissions SET on_test = ? WHERE id = ?"
        self.connection.execute(query, (value, submission))

    def record(self, submission: int, splits: tuple[str, ...], result: Result) -> None:
        """Write what a submission scores on these splits, or why it scores nothing."""
        [digest] = self._one("SELECT digest FROM submissions WHERE id = ?", submission)
        rows = []
        for split in splits:
            figures = result.splits.get(split, {})
            whole = Figure(problem=result.problem) if result.problem else overall(figures)
            for task, f in {**figures, OVERALL: whole}.items():
                figure = (f.value, f.second, f.low, f.high, f.problem, result.again)
                rows.append((digest, self.gold[split], split, task, *figure))
        with self._transaction():
            marks = ", ".join("?" * 10)
            self.connection.executemany(f"INSERT OR REPLACE INTO figures VALUES ({marks})", rows)
            if "test" in splits:
                self._set_on_test(submission, 1)
            if result.sonnets:
                self.connection.execute(
                    "INSERT OR REPLACE INTO sonnets VALUES (?, ?, ?)",
                    (digest, self.gold["dev"], json.dumps(result.sonnets)),
                )

    def frame(self) -> pd.DataFrame:
        """A row for each submission, split and task that these answers scored, in time's order."""
        gold = tuple(self.gold.get(split) for split in SPLITS)
        return pd.read_sql_query(FRAME, self.connection, params=gold)

    def sonnets(self, digest: str) -> dict[str, str]:
        """Number in the gold file -> the submission's dev text."""
        query = "SELECT texts FROM sonnets WHERE digest = ? AND gold = ?"
        found = self._one(query, digest, self.gold["dev"])
        return json.loads(found[0]) if found else {}
