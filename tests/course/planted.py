"""Mistakes planted into this project's own files, and what the autograder must say of each.

python tests/course/planted.py        writes their table into course/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mistakes import Mistake
from planted_model import IN_MODEL
from planted_tasks import IN_TASKS

from benchmarks.tables import with_tables
from engine.files import ROOT, atomic_write

PAGE = ROOT / "course" / "README.md"


PLANTED = [*IN_MODEL, *IN_TASKS]


def edited(file: str, *mistakes: Mistake) -> str:
    """A file's text with mistakes; each must change something, once."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for mistake in mistakes:
        assert text.count(mistake.old) >= 1, f"{mistake.file} has no {mistake.old!r}"
        text = text.replace(mistake.old, mistake.new, 1)
    return text


def table() -> str:
    rows = ["| line | what the autograder says of a mistake |", "|---|---|"]
    return "\n".join(rows + [f"| `{mistake.line}` | {mistake.says} |" for mistake in PLANTED])


def page(text: str) -> str:
    """The text of course/README.md with today's table."""
    return with_tables(text, {"diagnoses": table()})


def main():
    text = page(PAGE.read_text(encoding="utf-8"))
    with atomic_write(PAGE) as file:
        file.write(text)


if __name__ == "__main__":
    main()
