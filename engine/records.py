"""From the course's files to checked records: `file ─read─▶ records ─▶ engine/batches.py`.

Errors name the file, the line, what was found and what was expected.
"""

from dataclasses import dataclass, field

from engine.errors import InputError, quoted, some
from engine.sonnet_headings import headed
from engine.tables import read_table

CLASS_NAMES = {  # of the two sentiment sets, by label
    "sst": ("very negative", "negative", "neutral", "positive", "very positive"),
    "cfimdb": ("negative", "positive"),
}
NUM_LABELS = {name: len(classes) for name, classes in CLASS_NAMES.items()}
SONNET_HEADER = "--Generated Sonnets--"  # the first line of a file of generated sonnets


SONNET_FILES = {
    "train": "sonnets.txt",
    "dev": "sonnets_held_out_dev.txt",
    "test": "sonnets_held_out.txt",
    "gold": "TRUE_sonnets_held_out_dev.txt",
}


def data_file(task: str, split: str) -> str:
    """The course's name for a file of sst, cfimdb, paraphrase or sonnet.

    split: train, dev or test; of sonnets, dev and test are prompts, and gold is dev's full text.
    """
    if task == "sonnet":
        return SONNET_FILES[split]
    prefix = f"ids-{task}" if task in NUM_LABELS else "quora"
    return f"{prefix}-{split}{'-student' if split == 'test' else ''}.csv"


def data_path(task: str, split: str) -> str:
    """Where that file is by default."""
    return f"data/{data_file(task, split)}"


@dataclass(frozen=True)
class Record:
    """One row of a task: a sentence, or a sonnet."""

    sent_id: str
    text: str
    label: int | None = None


@dataclass(frozen=True)
class PairRecord:
    """One pair of questions; label 1 says that they are paraphrases."""

    sent_id: str
    sentence1: str
    sentence2: str
    label: int | None = None


def rows_in_both(training: list, dev: list) -> list[str]:
    """The ids of dev rows whose text, or pair of questions in any order, stands in training too."""

    def texts(row):
        return row.text if isinstance(row, Record) else frozenset((row.sentence1, row.sentence2))

    known = {texts(row) for row in training}
    return [row.sent_id for row in dev if texts(row) in known]


def warn_of_rows_in_both(training: list, dev: list, paths: dict, say) -> None:
    """paths: of train and dev. What a model has learnt by heart says little of other texts."""
    if both := rows_in_both(training, dev):
        say(
            f"{paths['dev']}: {len(both)} of {len(dev)} rows stand in {paths['train']}, too, which "
            f"makes dev figures look better than they are: {some(both)}"
        )


@dataclass(frozen=True)
class PairFile:
    """The pairs of a file, and the incomplete rows that were left out, as "line 12 (id 3f…)"."""

    records: list[PairRecord]
    dropped: list[str] = field(default_factory=list)


def read_sentiment(path, num_labels: int | None) -> list[Record]:
    """Records of a sentiment file; num_labels None reads a test file, which has no labels."""
    columns = ["id", "sentence"] + (["sentiment"] if num_labels else [])
    records, seen = [], set()
    for line, row in read_table(path, columns):
        sent_id, label = _new_id(row["id"], seen, f"{path}, line {line}"), None
        if num_labels:
            label = _label(row["sentiment"], num_labels, f"{path}, line {line}, column sentiment")
        records.append(Record(sent_id, row["sentence"].lower().strip(), label))
    return records


def read_pairs(path, labelled: bool) -> PairFile:
    """Pairs of a Quora file; rows that lack a question or their label are dropped and named."""
    columns = ["id", "sentence1", "sentence2"] + (["is_duplicate"] if labelled else [])
    records, dropped, seen = [], [], set()
    for line, row in read_table(path, columns, may_be_short=True):
        sent_id = _new_id(row["id"], seen, f"{path}, line {line}")
        if not all((cell or "").strip() for cell in row.values()):
            dropped.append(f"line {line} (id {sent_id})")
            continue
        label = None
        if labelled:
            label = _label(row["is_duplicate"], 2, f"{path}, line {line}, column is_duplicate")
        first, second = spaced(row["sentence1"]), spaced(row["sentence2"])
        records.append(PairRecord(sent_id, first, second, label))
    if not records:
        raise InputError(f"{path}: every row lacks a question or its label: get the file again")
    return PairFile(records, dropped)


def spaced(text: str) -> str:
    """Lower-case a question and set its punctuation apart, as the course does for Quora."""
    for mark in ".?,":
        text = text.replace(mark, f" {mark}")
    return " ".join(text.lower().replace("'", " '").split())


def read_sonnets(path) -> list[Record]:
    """Read the sonnets of a file, each after its heading; what precedes the first is skipped.

    A line that holds only a number in digits is a heading, as for the course's reader. A heading
    may also read "2.", "II", "Sonnet 2" or "SONNET II.", but so may a verse. Such a line is a
    heading if it follows a blank line and counts on from the last heading by one, and a verse if
    it does neither. If it does only one of them, the file is refused, and the line is named.
    Where no heading came before, it always is one.
    """
    seen, records = set(), []
    for number, place, lines in headed(path):
        _new_id(number, seen, f"{path}, line {place}")
        records.append(Record(number, "\n".join(lines).strip()))
        if not records[-1].text:
            raise InputError(
                f"{path}, line {place}: sonnet {number} has no text: complete the file"
            )
    if not records:
        raise InputError(
            f"{path}: no sonnet found: expected lines that hold only a number, each followed by "
            f"its sonnet"
        )
    return records


def check_id(sent_id: str, where: str) -> None:
    """Refuse what a spreadsheet takes for a formula, and what a terminal obeys or does not show."""
    plain = sent_id.isprintable() and not any(c.isspace() or c in ',"' for c in sent_id)
    if not plain or sent_id.startswith(("=", "+", "-", "@")):
        raise InputError(
            f"{where}: found the id {quoted(sent_id)}, expected letters and digits without "
            f"spaces, signs or commas: mend the row"
        )


def _new_id(cell: str | None, seen: set[str], where: str) -> str:
    """The id in a cell, which joins those that were seen before."""
    sent_id = (cell or "").lower().strip()
    if not sent_id:
        raise InputError(f"{where}: the id is empty: every row needs its own")
    check_id(sent_id, where)
    if sent_id in seen:
        raise InputError(f"{where}: id {sent_id} stands twice: every row needs its own")
    seen.add(sent_id)
    return sent_id


def _label(cell: str | None, num_labels: int, where: str) -> int:
    try:
        label = float(cell)
    except (TypeError, ValueError):
        label = -1
    if label not in range(num_labels):
        raise InputError(
            f"{where}: label {quoted(cell)}, expected one of {list(range(num_labels))}"
        )
    return int(label)
