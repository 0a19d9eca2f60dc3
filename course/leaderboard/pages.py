"""The static site: a page for each split, one of sonnets, and one for each team.

Everything is inline, nothing is fetched. Names and sonnets are text that strangers wrote: Jinja
escapes them, and the pages allow no script but their own (its hash is in the content policy).
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from course.leaderboard.aliases import shown_name
from course.leaderboard.chart import chart
from course.leaderboard.exports import write_public
from course.leaderboard.ranking import TASKS, best, frontier
from course.leaderboard.scoring import OVERALL, SPLITS
from course.leaderboard.store import TEST_TRIES, History
from engine.files import atomic_folder
from engine.records import Record
from programs.decoding import verse_marks
from programs.decoding.verse_marks import has_dictionary, mark

TEMPLATES = Path(__file__).parent / "templates"
COMPARED = 6  # teams whose sonnets stand side by side


@dataclass(frozen=True)
class Site:
    """All that pages are made from.

    rankings: split -> ranking.best; ranked: split -> task -> how many teams are ranked by it;
    best: (split, team, task) -> the row of a ranking; gold: the true dev sonnets.
    """

    title: str
    frame: pd.DataFrame
    rankings: dict[str, pd.DataFrame]
    ranked: dict[str, dict[str, int]]
    best: dict[tuple[str, int, str], tuple]
    names: dict[int, str]
    gold: list[Record]
    texts: dict[int, dict[str, str]]  # team -> its best sonnets

    @classmethod
    def read(cls, history: History, gold: list[Record], title: str, anonymous: bool) -> "Site":
        frame = history.frame()
        names = {
            team: shown_name(team, name, anonymous)
            for team, name in frame[["team", "name"]].drop_duplicates().itertuples(index=False)
        }
        rankings = {split: best(frame, split) for split in history.gold}
        rows = rankings.get("dev", frame[:0])
        rows = rows[rows["task"] == "sonnet"]
        texts = {row.team: history.sonnets(row.digest) for row in rows.itertuples()}
        ranked = {
            split: ranking.groupby("task", sort=False).size().to_dict()
            for split, ranking in rankings.items()
        }
        rows = (row for ranking in rankings.values() for row in ranking.itertuples())
        top = {(row.split, row.team, row.task): row for row in rows}
        return cls(title, frame, rankings, ranked, top, names, gold, texts)

    @property
    def files(self) -> dict[str, str]:
        """Split -> its page; the first one is what a visitor comes to."""
        first, *others = self.rankings
        return {first: "index.html", **{split: f"{split}.html" for split in others}}


def write_site(site: Site, out: Path) -> None:
    """Write all pages, whole or not at all; what stood in the folder before is replaced."""
    pages, marked = environment(site), bool(site.texts) and has_dictionary()
    with atomic_folder(out) as folder:
        (folder / "teams").mkdir()
        for split, file in site.files.items():
            page = pages.get_template("board.html").render(board(site, split))
            (folder / file).write_text(page, encoding="utf-8")
        if site.texts:
            page = pages.get_template("sonnets.html").render(sonnets(site, marked))
            (folder / "sonnets.html").write_text(page, encoding="utf-8")
        template = pages.get_template("team.html")
        true = {sonnet.sent_id: mark(sonnet.text, marked) for sonnet in site.gold}
        for team, rows in site.frame.groupby("team"):
            page = template.render(team_page(site, team, rows, true, marked))
            (folder / "teams" / f"{team}.html").write_text(page, encoding="utf-8")
        write_public(folder, site.rankings, site.names)


def moment(text: str) -> str:
    """2 Mar 2026, 14:05, of a time in ISO's format."""
    time = datetime.fromisoformat(text)
    return f"{time.day} {time:%b %Y, %H:%M}"


def environment(site: Site) -> Environment:
    pages = Environment(
        loader=FileSystemLoader([TEMPLATES, verse_marks.TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "board.js").read_text(encoding="utf-8").rstrip("\n")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages.filters["moment"] = moment
    pages.globals |= {
        "title": site.title,
        "tasks": TASKS,
        "tries": TEST_TRIES,
        "splits": site.files,
        "has_sonnets": bool(site.texts),
        "script_hash": digest,
    }
    return pages


# -- what each page shows --------------------------------------------------------------------------


def board(site: Site, split: str) -> dict:
    """The table of a split: a row a team, in the order of the overall ranking."""
    ranking = site.rankings[split]
    shown = list(site.ranked[split])
    of_split = site.frame[(site.frame["split"] == split) & (site.frame["task"] == OVERALL)]
    entries = of_split.groupby("team").size().to_dict()
    teams = ranking.loc[ranking["task"] == OVERALL, "team"]
    scored = of_split[of_split["value"].notna()]
    return {
        "up": "",
        "split": split,
        "shown": shown,
        "rows": [
            {
                "team": team,
                "name": site.names[team],
                "cells": [site.best.get((split, team, task)) for task in shown],
                "entries": entries[team],
            }
            for team in teams
        ],
        "extent": {task: extent(rows) for task, rows in ranking.groupby("task")},
        "submissions": len(scored),
        "unscored": len(of_split) - len(scored),
        "last": of_split["time"].max() if len(of_split) else None,
        "chart": chart(scored, frontier(site.frame, split)),
    }


def extent(rows: pd.DataFrame) -> Callable[[float], int]:
    """From a figure to its place between all intervals' ends, in percent."""
    low, high = rows["low"].min(), rows["high"].max()
    return lambda value: round(100 * (value - low) / max(high - low, 1.0))


def sonnets(site: Site, marked: bool) -> dict:
    """Each dev sonnet beside those of the best teams."""
    ranking = site.rankings["dev"]
    rows = ranking[ranking["task"] == "sonnet"].head(COMPARED)
    poems = []
    for sonnet in site.gold:
        versions = [
            (row, site.names[row.team], mark(site.texts[row.team][sonnet.sent_id], marked))
            for row in rows.itertuples()
        ]
        poems.append((sonnet.sent_id, mark(sonnet.text, marked), versions))
    return {"up": "", "poems": poems, "marked": marked}


def team_page(site: Site, team: int, rows: pd.DataFrame, true: dict, marked: bool) -> dict:
    """The history of a team, and its best sonnets beside the true ones."""
    overall = rows[(rows["task"] == OVERALL) & rows["value"].notna()]
    dev, test = (overall[overall["split"] == split] for split in SPLITS)
    histories = {
        split: {
            "ranked": ranked,
            "best": {
                task: site.best[split, team, task]
                for task in ranked
                if (split, team, task) in site.best
            },
        }
        for split, ranked in site.ranked.items()
    }
    texts = site.texts.get(team, {})
    return {
        "up": "../",
        "name": site.names[team],
        "histories": histories,
        "figures": {(row.split, row.submission, row.task): row for row in rows.itertuples()},
        "submissions": list(rows.drop_duplicates("submission")[::-1].itertuples()),
        "chart": chart(dev, frontier(rows, "dev"), test) if len(dev) else None,
        "poems": [(n, poem, mark(texts[n], marked)) for n, poem in true.items() if n in texts],
        "marked": marked,
    }
