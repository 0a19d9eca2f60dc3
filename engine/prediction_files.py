"""The course's prediction files, written and read, each with a record of the run that made it.

id, Predicted_Sentiment        or Predicted_Is_Paraphrase: "no" and "yes" as GPT-2's tokens
<id>, <class>                  one line a row
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from engine.errors import InputError, excerpt, is_number, quoted
from engine.files import atomic_write
from engine.records import (
    NUM_LABELS,
    SONNET_HEADER,
    Record,
    check_id,
    read_pairs,
    read_sentiment,
)
from engine.sonnet_headings import verses_only
from engine.tables import read_text

ANSWER_TOKENS = {0: 3919, 1: 8505}  # "no" and "yes" in GPT-2's vocabulary
SENTIMENTS = NUM_LABELS["sst"]  # CFIMDB's two are written by the first two numbers
CLASSES = {  # column -> what stands in it -> the class
    "Predicted_Sentiment": {str(i): i for i in range(SENTIMENTS)},
    "Predicted_Is_Paraphrase": {str(token): label for label, token in ANSWER_TOKENS.items()},
}


def write_predictions(path, column: str, sent_ids: list[str], values: list[int]) -> None:
    """A prediction file: the header `id, <column>`, then one line a row."""
    with atomic_write(path) as file:
        file.write(f"id, {column} \n")
        file.writelines(f"{i}, {value} \n" for i, value in zip(sent_ids, values, strict=True))


def write_sonnets(path, sonnets: list[Record]) -> None:
    """A file of generated sonnets: a header, then for each its index and its text.

    No line of a text begins another sonnet, for this project's reader and for the course's.
    """
    with atomic_write(path) as file:
        file.write(f"{SONNET_HEADER}\n\n")
        for sonnet in sonnets:
            file.write(f"\n{sonnet.sent_id}\n{verses_only(sonnet.text, sonnet.sent_id)}\n\n")


def header_column(line: str) -> str | None:
    """The column that a header names beside `id`; None if the line is no header.

    The course's own classifier.py separates the two by a tab, the handout by a comma.
    """
    found = re.fullmatch(r"\s*id\s*[,\t]\s*(\w+)\s*", line)
    return found and found[1]


def split_row(line: str) -> tuple[str, str] | None:
    """(id, value) of a row; None if it has no such form."""
    sent_id, comma, value = (part.strip() for part in line.partition(","))
    return (sent_id.lower(), value) if sent_id and comma else None


@dataclass(frozen=True)
class PredictionFile:
    path: str
    column: str
    classes: dict[str, int]  # by id, in the file's order


def read_predictions(path, column: str | None = None) -> PredictionFile:
    """A file of predictions; answers by tokens become 0 and 1.

    column: the one that it must have; None takes either.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file: predict first, by a task's --checkpoint FILE")
    header, *lines = read_text(path).rstrip().split("\n")
    found, columns = header_column(header), [column] if column else list(CLASSES)
    if found not in columns:
        expected = " or ".join(repr(f"id, {known}") for known in columns)
        raise InputError(
            f"{path}, line 1: found {quoted(header.strip())}, expected {expected}: give "
            f"predictions of one task"
        )
    classes: dict[str, int] = {}
    for number, line in enumerate(lines, start=2):
        sent_id, value = split_row(line) or ("", "")
        if value not in CLASSES[found]:
            raise InputError(
                f"{path}, line {number}: found {quoted(line.strip())}, expected an id and one of "
                f"{', '.join(CLASSES[found])}: predict anew"
            )
        check_id(sent_id, f"{path}, line {number}")
        if sent_id in classes:
            raise InputError(f"{path}, line {number}: id {sent_id} stands twice: predict anew")
        classes[sent_id] = CLASSES[found][value]
    if not classes:
        raise InputError(f"{path}: a header and no rows: predict anew")
    return PredictionFile(str(path), found, classes)


def read_gold(path, column: str) -> dict[str, int]:
    """The labels of a data file, by id, for predictions with this column."""
    if column == "Predicted_Sentiment":
        records = read_sentiment(path, SENTIMENTS)
    else:
        records = read_pairs(path, labelled=True).records
    return {record.sent_id: record.label for record in records}


def check_ids(found: dict, expected: dict, path, where) -> None:
    """Refuse predictions for other rows than those of the file `where`."""
    unlike = sorted(expected.keys() ^ found.keys())
    if unlike:
        state = "is missing" if unlike[0] in expected else f"is not in {where}"
        raise InputError(
            f"{path}: {len(unlike)} ids differ from those of {where}, the first is {unlike[0]}, "
            f"which {state}: give predictions for one and the same file, made without --limit"
        )


# -- where a file comes from -------------------------------------------------------------------

RECORDS = "predictions.json"  # in the folder of the run, or beside the checkpoint, that made them


def write_record(made_by, path, args, figures: dict[str, float]) -> None:
    """Note in a run's folder, or beside a checkpoint, that a prediction file comes from there.

    figures: how good that is on dev. A folder that others own is left alone.
    """
    folder = Path(made_by) if Path(made_by).is_dir() else Path(made_by).parent
    if not os.access(folder, os.W_OK):
        return
    flags = {name: getattr(args, name, None) for name in ("model_size", "extension", "limit")}
    facts = {"made_by": str(made_by), **flags, "dev": figures, "sha256": _digest(path)}
    records = _read_json(folder / RECORDS) | {str(path): facts}
    with atomic_write(folder / RECORDS) as file:
        json.dump(records, file, indent=2)
        file.write("\n")


def is_from(folder, path) -> bool:
    """Whether a prediction file is, as it stands there, the last that a run's folder records."""
    facts = _read_json(Path(folder) / RECORDS).get(str(path), {})
    return Path(path).is_file() and facts.get("sha256") == _digest(path)


def origin(path, runs_dir) -> str:
    """Which run below a folder wrote a prediction file as it is now, in words."""
    digest, made = _digest(path), None
    for records in sorted(Path(runs_dir).rglob(RECORDS), key=lambda p: p.stat().st_mtime):
        for name, facts in _read_json(records).items():
            if Path(name).name == Path(path).name and facts.get("sha256") == digest:
                made = facts
    if made is None:
        return f"no run in {runs_dir} wrote this file as it is"
    figures = [f"dev {name} {value:.3f}" for name, value in made["dev"].items()]
    limit = [f"--limit {made['limit']}"] if made.get("limit") else []
    flags = [made.get("model_size"), *map(str, made.get("extension") or [])]
    return excerpt(", ".join(filter(None, [made["made_by"], *flags, *limit, *figures])))


def _read_json(path: Path) -> dict[str, dict]:
    """The facts of each prediction file; {} where no file is there."""
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({excerpt(error)}): delete it") from error
    kinds = {"made_by": str, "model_size": (str, NoneType), "extension": (list, NoneType)}
    kinds |= {"dev": dict, "limit": (int, NoneType)}
    for facts in records.values() if isinstance(records, dict) else [records]:
        right = isinstance(facts, dict) and all(isinstance(facts.get(k), kinds[k]) for k in kinds)
        if not right or not all(map(is_number, facts["dev"].values())):
            raise InputError(f"{path}: found {quoted(facts)}, expected facts of a run: delete it")
    return records


def _digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
