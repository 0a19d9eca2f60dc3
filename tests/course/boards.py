"""Sites of leaderboards whose figures are made up, so that no submission need be scored."""

import random
from datetime import timedelta
from pathlib import Path

from submissions import SONNETS, START

from course.leaderboard.pages import Site, write_site
from course.leaderboard.ranking import TASKS
from course.leaderboard.scoring import OVERALL, Figure, Result
from course.leaderboard.sources import Submission
from course.leaderboard.store import History
from engine.records import read_sonnets

REASON = "line 3: found the value 'nan', a reason for staff"
HOSTILE = [
    "<script>alert(1)</script>",
    "\u202egnp.exe",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "x" * 10_000,
    "</style></title><b onload=alert(1)>",
    "שלום",
    "  ",
    '"quoted" & {{ 7 * 7 }}',
]


def history_of(folder: Path, names: list[str], submissions: int = 3) -> History:
    """Teams with figures that a seed determines; each team's second submission fails on sonnets."""
    history, draw = History(folder / "history.sqlite", {"dev": "a", "test": "b"}), random.Random(0)
    texts = {poem.sent_id: poem.text for poem in read_sonnets(SONNETS)}
    for i, name in enumerate(names):
        for turn in range(submissions):
            when = START + timedelta(hours=i + 30 * turn)
            path = Path(f"zip-of-team-{i}.zip")
            submission = Submission(f"{name}@example.org", name, when, path)
            number = history.add(submission, f"digest {name} {turn}")
            if splits := history.to_score(number):
                verse = HOSTILE[i % len(HOSTILE)][:500]
                history.record(number, splits, _result(draw, splits, turn, texts, verse))
    if names:
        broken = Submission("broken", "broken", START, Path("zip-of-team-x.zip"))
        number = history.add(broken, "digest broken")
        history.record(number, history.to_score(number), Result(problem=REASON))
    return history


def _result(draw, splits, turn: int, texts: dict[str, str], verse: str) -> Result:
    figures = {}
    for split in splits:
        values = {task: draw.uniform(20, 95) + turn for task in TASKS if task != OVERALL}
        figures[split] = {t: Figure(v, v - 1, v - 2.5, v + 2.5) for t, v in values.items()}
        if turn == 1:
            figures[split]["sonnet"] = Figure(problem=REASON)
    return Result(figures, {n: f"{text}\n{verse}" for n, text in texts.items()})


def site_of(folder: Path, history: History, *, anonymous: bool = False) -> dict[str, str]:
    """Write the site to folder/site; path -> text of its files."""
    site = Site.read(history, read_sonnets(SONNETS), "CS 224N leaderboard", anonymous)
    write_site(site, folder / "site")
    found = (path for path in (folder / "site").rglob("*") if path.is_file())
    return {
        path.relative_to(folder / "site").as_posix(): path.read_text(encoding="utf-8")
        for path in found
    }
