"""The rubric: every line that is graded, and its points from points.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from course.autograder.checks import adamw, attention, layer, model, tasks
from course.gold import COLUMNS
from engine.errors import InputError, excerpt, is_number, quoted, some
from engine.submission_form import Sonnets, Table

POINTS = Path(__file__).with_name("points.toml")
CHECKS = [*attention.CHECKS, *layer.CHECKS, *model.CHECKS, *adamw.CHECKS, *tasks.CHECKS]
VISIBILITIES = ("visible", "hidden", "after_due_date", "after_published")
FIGURES = (*COLUMNS[Table], *COLUMNS[Sonnets])
PREDICTIONS = {
    "finetune-sst": "SST, full model",
    "finetune-cfimdb": "CFIMDB, full model",
    "pretrain-sst": "SST, last linear layer",
    "pretrain-cfimdb": "CFIMDB, last linear layer",
    "paraphrase": "paraphrases",
    "sonnet": "sonnets",
}


@dataclass(frozen=True)
class Aim:
    """Points of a prediction file: half for its form, the rest from `low` to `high` of `figure`."""

    points: float
    figure: str
    low: float
    high: float

    def share(self, figures: dict[str, float]) -> float:
        """The share of the points, 0.5 to 1, for the figures of a file in the right form."""
        share = (figures[self.figure] - self.low) / (self.high - self.low)
        return 0.5 + 0.5 * min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class Rubric:
    points: dict[str, dict[str, float]]  # section -> line -> points
    aims: dict[str, Aim]  # by the names of course.gold
    visibility: dict[str, str]  # by section

    def shown(self, section: str) -> str:
        return self.visibility.get(section, "visible")


def read_rubric(path: Path = POINTS) -> Rubric:
    """A file of points; InputError where it has not just the lines that are graded."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file: copy {POINTS.name} and change it") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise InputError(f"{path}: {excerpt(error)}: compare it with {POINTS.name}") from error
    sections, visibility = lines(), document.pop("visibility", {})
    _check_names(path, "sections", document, [*sections, "predictions"])
    _check_names(path, "visibility", visibility, visibility.keys() & {*sections, "predictions"})
    for section, value in visibility.items():
        if value not in VISIBILITIES:
            raise InputError(
                f"{path}, visibility: {section} is {quoted(value)}, expected one of "
                f"{', '.join(VISIBILITIES)}"
            )
    for section, titles in sections.items():
        _check_names(path, section, document[section], titles)
        for line, points in document[section].items():
            _check_number(path, f"{section}.{line}", points)
    _check_names(path, "predictions", document["predictions"], PREDICTIONS)
    aims = {name: _aim(path, name, row) for name, row in document.pop("predictions").items()}
    return Rubric(document, aims, visibility)


def lines() -> dict[str, dict[str, str]]:
    """Section -> line -> what it asks for, in the order of grading."""
    sections: dict[str, dict[str, str]] = {}
    for check in CHECKS:
        sections.setdefault(check.section, {}).update(check.lines)
    return sections


def _aim(path, name: str, row: dict) -> Aim:
    _check_names(path, f"predictions.{name}", row, ["points", "figure", "from", "to"])
    if row["figure"] not in FIGURES:
        raise InputError(
            f"{path}, predictions.{name}: figure is {quoted(row['figure'])}, expected one of "
            f"{', '.join(FIGURES)}"
        )
    for key in ("points", "from", "to"):
        _check_number(path, f"predictions.{name}.{key}", row[key])
    if not row["from"] < row["to"]:
        raise InputError(f"{path}, predictions.{name}: expected `from` below `to`")
    return Aim(row["points"], row["figure"], row["from"], row["to"])


def _check_names(path, where: str, found, expected) -> None:
    if not isinstance(found, dict) or found.keys() ^ set(expected):
        names = sorted(found) if isinstance(found, dict) else quoted(found)
        unlike = sorted(set(names) ^ set(expected)) if isinstance(found, dict) else [names]
        raise InputError(
            f"{path}, {where}: {some(unlike)} too much or missing, expected "
            f"{some(list(expected), 20)}"
        )


def _check_number(path, where: str, value) -> None:
    if not is_number(value) or value < 0:
        raise InputError(f"{path}, {where}: found {quoted(value)}, expected a number from 0 on")
