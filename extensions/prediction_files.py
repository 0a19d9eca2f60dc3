"""The course's prediction files read back: `id, Predicted_…`, a row each, and their gold labels."""

from dataclasses import dataclass
from pathlib import Path

from dataset import NUM_LABELS, read_pairs, read_sentiment, read_text
from evaluation import ANSWER_TOKENS
from utils import InputError

SENTIMENTS = NUM_LABELS["sst"]  # CFIMDB's two are written by the first two numbers
CLASSES = {  # column -> what stands in it -> the class
    "Predicted_Sentiment": {str(i): i for i in range(SENTIMENTS)},
    "Predicted_Is_Paraphrase": {str(token): label for label, token in ANSWER_TOKENS.items()},
}


@dataclass(frozen=True)
class PredictionFile:
    path: str
    column: str
    classes: dict[str, int]  # by id, in the file's order


def read_predictions(path, column: str | None = None) -> PredictionFile:
    """A file that `evaluation.write_predictions` wrote; answers by tokens become 0 and 1.

    column: the one that it must have; None takes either.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file: predict first, by a task's --checkpoint FILE")
    header, *lines = read_text(path).rstrip().split("\n")
    name, _, found = (part.strip() for part in header.partition(","))
    columns = [column] if column else list(CLASSES)
    if name != "id" or found not in columns:
        expected = " or ".join(repr(f"id, {known}") for known in columns)
        raise InputError(
            f"{path}, line 1: found {header.strip()!r}, expected {expected}: give predictions of "
            f"one task"
        )
    classes: dict[str, int] = {}
    for number, line in enumerate(lines, start=2):
        sent_id, _, value = (part.strip() for part in line.partition(","))
        sent_id = sent_id.lower()
        if not sent_id or value not in CLASSES[found]:
            raise InputError(
                f"{path}, line {number}: found {line.strip()!r}, expected an id and one of "
                f"{', '.join(CLASSES[found])}: predict anew"
            )
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
