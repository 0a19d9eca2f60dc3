"""Gradescope's results.json, whole on disk after every line of the rubric."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from course.autograder.rubric import PREDICTIONS, Rubric, lines
from engine.errors import excerpt
from engine.files import atomic_write

NOT_RUN = "not run: the autograder was stopped before this line"
MOST = 600  # characters of a line's message
ORDER = {"acc": "desc", "f1": "desc", "chrf": "desc", "chrf_continuation": "desc"}


class Results:
    """The score so far; `write` puts it into the file, which is never half-written."""

    def __init__(self, path: Path, rubric: Rubric, predictions: Iterable[str] = ()):
        """predictions: those that there are answers to, by the names of course.gold."""
        self.path, self.rubric, self.began = Path(path), rubric, time.monotonic()
        self.output, self.leaderboard, self.extra = "", [], {}
        self.tests: dict[tuple[str, str], dict] = {}
        for section, titles in lines().items():
            for line, title in titles.items():
                self._add(section, line, title, rubric.points[section][line])
        for name in predictions:
            self._add("predictions", name, PREDICTIONS[name], rubric.aims[name].points)
        self.write()

    def _add(self, section: str, line: str, title: str, points: float) -> None:
        self.tests[section, line] = {
            "name": f"{section}.{line}: {title}",
            "number": str(len(self.tests) + 1),
            "score": 0.0,
            "max_score": float(points),
            "status": "failed",
            "output": NOT_RUN,
            "output_format": "text",
            "tags": [section],
            "visibility": self.rubric.shown(section),
        }

    def set(self, section: str, line: str, *, share: float, output: str) -> None:
        """Set the share of a line's points, from 0 to 1, and its message; 1 has passed."""
        test = self.tests[section, line]
        test["score"] = round(share * test["max_score"], 2)
        test["status"] = "passed" if share == 1 else "failed"
        test["output"] = excerpt(output, MOST)
        self.write()

    def refuse(self, problem: str) -> None:
        """A submission that cannot be graded at all."""
        self.output = excerpt(problem, MOST)
        for section, line in self.tests:
            self.tests[section, line]["output"] = "not graded: see above"
        self.write()

    def add_figures(self, name: str, figures: dict[str, float]) -> None:
        for figure, value in figures.items():
            row = {"name": f"{name} {figure}", "value": round(value, 4), "order": ORDER[figure]}
            self.leaderboard.append(row)

    @property
    def score(self) -> float:
        return round(sum(test["score"] for test in self.tests.values()), 2)

    def document(self) -> dict:
        return {
            "score": self.score,
            "execution_time": round(time.monotonic() - self.began, 1),
            "output": self.output,
            "output_format": "text",
            "visibility": "visible",
            "stdout_visibility": "hidden",
            "extra_data": self.extra,
            "tests": list(self.tests.values()),
            "leaderboard": self.leaderboard,
        }

    def write(self) -> None:
        with atomic_write(self.path) as file:
            json.dump(self.document(), file, indent=1, ensure_ascii=True, allow_nan=False)
