"""From the course's files to checked records: `file ─read─▶ records ─▶ batches.py`.

Whatever is wrong with a file is said with its line, what was found and what was expected.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from utils import InputError

NUM_LABELS = {"sst": 5, "cfimdb": 2}  # classes of the two sentiment sets
END = "\x03 end of file"  # added as a last row: a quote that never closes swallows it


def data_file(task: str, split: str) -> str:
    """The course's name for the file of a split: train, dev or test, of sst, cfimdb, paraphrase."""
    prefix = f"ids-{task}" if task in NUM_LABELS else "quora"
    return f"{prefix}-{split}{'-student' if split == 'test' else ''}.csv"


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
    """Sonnets of a file: what follows a line that holds only a number, to the next such line."""
    parts = re.split(r"^[ \t]*(\d+)[ \t]*$", read_text(path), flags=re.MULTILINE)
    records = [
        Record(sent_id=number, text="\n".join(line.rstrip() for line in text.strip().splitlines()))
        for number, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if not records:
        raise InputError(
            f"{path}: no sonnet found: expected lines that hold only a number, each followed by "
            f"its sonnet"
        )
    seen = set()
    for record in records:
        _new_id(record.sent_id, seen, str(path))
        if not record.text:
            raise InputError(f"{path}: sonnet {record.sent_id} has no text: complete the file")
    return records


def read_text(path) -> str:
    """A whole UTF-8 file; that it is missing, empty or not UTF-8 is said with the place."""
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(
            f"{path}: no such file: get the data by python data/download.py"
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as "
            f"UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty: get it again by python data/download.py")
    return text.replace("\r\n", "\n")


def read_table(path, columns: list[str], may_be_short: bool = False):
    """Rows of a tab-separated file with a header, as (line number, {column: text}).

    Read with csv's default quoting, as the course does. `may_be_short` lets cells be missing at a
    row's end, None then (Quora has such rows); else each row must be as long as the header.
    """
    text = f"{read_text(path)}\n{END}"
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    header = next(reader)
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(
            f"{path}, line 1: no column {', '.join(missing)}: found {header}, expected the "
            f"tab-separated columns {columns}"
        )
    places = {name: header.index(name) for name in columns}
    rows, line = [], 2
    for cells in reader:
        if any("\n" in cell and ("\t" in cell or cell.endswith(END)) for cell in cells):
            raise InputError(f"{path}, line {line}: a quote opens here and never closes: mend it")
        if cells == [END]:
            break
        short = len(cells) < len(header) and not may_be_short
        if cells and (short or len(cells) > len(header)):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells, expected {len(header)}: mend the row"
            )
        if cells:
            rows.append(
                (line, {n: cells[i] if i < len(cells) else None for n, i in places.items()})
            )
        line = reader.line_num + 1
    if not rows:
        raise InputError(f"{path}: a header and no rows: get it again by python data/download.py")
    return rows


def _new_id(cell: str | None, seen: set[str], where: str) -> str:
    """The id in a cell, which joins those that were seen before."""
    sent_id = (cell or "").lower().strip()
    if not sent_id:
        raise InputError(f"{where}: the id is empty: every row needs its own")
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
        raise InputError(f"{where}: label {cell!r}, expected one of {list(range(num_labels))}")
    return int(label)
