"""From the course's files to checked records: `file ─read─▶ records ─▶ engine/batches.py`.

Errors name the file, the line, what was found and what was expected.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import InputError, some

NUM_LABELS = {"sst": 5, "cfimdb": 2}  # classes of the two sentiment sets
END = "\x03 end of file"  # added as a last row: a quote that never closes swallows it
SONNET_HEADER = "--Generated Sonnets--"  # the first line of a file of generated sonnets
LINE_END = re.compile(r"\r*\n|\r")  # of Unix, Windows and old Macs
SPACE = r"\s\u200b-\u200f\u2060\ufeff"  # also what is of no width
MARK = rf"[{SPACE}#*()\[\].:–—-]*"
ROMAN = r"(?=[CLXVI])C{0,3}(?:XC|XL|L?X{0,4})(?:IX|IV|V?I{0,4})"  # 1 to 399
NUMBER_ALONE = re.compile(rf"[{SPACE}]*(\d+)[{SPACE}]*")
HEADING = re.compile(rf"{MARK}(?:SONNET{MARK})?(?:(\d{{1,9}})|({ROMAN})){MARK}")


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
    for number, place, lines in _headed(path):
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


def _headed(path) -> list[tuple[str, int, list[str]]]:
    """Of each sonnet its number, the line of its heading, and the lines that follow."""
    found = []
    for place, line in _numbered_lines(read_text(path)):
        last, _, lines = found[-1] if found else (None, 0, [])
        number, signs = _heading(line, last, lines)
        if signs == 1:
            raise InputError(
                f"{path}, line {place}: found {line.strip()!r} in sonnet {last}, which may be a "
                f"heading or a verse: write a heading in digits alone, or end a verse with a comma"
            )
        if signs == 2:
            found.append((number, place, []))
        elif line or lines:
            lines.append(line)
    return found


def verses_only(sonnet: Record) -> str:
    """A sonnet's text as `read_sonnets` gives it back, whoever wrote its lines.

    A line that might be taken for a heading gets a comma.
    """
    lines = []
    for _, line in _numbered_lines(sonnet.text.strip()):
        _, signs = _heading(line, sonnet.sent_id, lines)
        lines.append(f"{line}," if signs else line)
    return "\n".join(lines)


def _numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(an editor's line number, line without spaces at its end).

    What cuts a line for Python alone, as a form feed does, is no line end for editors.
    """
    for place, line in enumerate(LINE_END.split(text), start=1):
        for part in line.splitlines() or [""]:
            yield place, part.rstrip()


def _heading(line: str, last: str | None, before: list[str]) -> tuple[str | None, int]:
    """The number in a line that looks like a heading, and how many of the two signs it has.

    last: the number of the heading before, None if there is none; before: the lines since then.
    """
    alone, found = NUMBER_ALONE.fullmatch(line), HEADING.fullmatch(line.upper())
    if alone:
        return alone[1], 2
    if not found:
        return None, 0
    number = int(found[1]) if found[1] else _roman(found[2])
    after_blank = bool(before) and not before[-1]
    return str(number), 2 if last is None else after_blank + (str(number - 1) == last)


def _roman(numeral: str) -> int:
    """A letter before a larger one counts negative."""
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-v if v < after else v for v, after in zip(values, following, strict=True))


def missing(path) -> InputError:
    """What is said of a data file that is not there."""
    return InputError(
        f"{path}: no such file in {Path(path).resolve().parent}: python data/download.py brings "
        f"the course's files, and --data_dir data/sample has small ones to try things with"
    )


def read_text(path) -> str:
    """A whole UTF-8 file; that it is missing, empty or not UTF-8 is said with the place."""
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise missing(path) from error
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
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter="\t")
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
        if (open_at := _unclosed(cells, lines[line - 1 : reader.line_num])) is not None:
            raise InputError(
                f"{path}, line {line + open_at}: a quote opens here and never closes: mend it"
            )
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


def _unclosed(cells: list[str], lines: list[str]) -> int | None:
    """In which of a row's lines a quote opens that never closes; None if all of them close.

    Such a quote swallows rows, up to one that holds a quote of its own. That one then stands where
    no quote may: before other text. A cell that was meant to hold tabs and lines ends as it should.
    """
    before = 0
    for cell in cells:
        if cell.endswith(END) and cell != END:
            return before
        if "\n" in cell and "\t" in cell:
            try:
                list(csv.reader(lines, delimiter="\t", strict=True))
            except csv.Error:
                return before
        before += cell.count("\n")
    return None


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
