"""Text files and tab-separated tables, read whole; errors name the file and the line."""

import csv
import io
import re
from pathlib import Path

from engine.errors import InputError, excerpt

END = "\x03 end of file"  # added as a last row: a quote that never closes swallows it
LINE_END = re.compile(r"\r*\n|\r")  # of Unix, Windows and old Macs


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
    absent = [name for name in columns if name not in header]
    if absent:
        raise InputError(
            f"{path}, line 1: no column {', '.join(absent)}: found {excerpt(header)}, expected the "
            f"tab-separated columns {columns}"
        )
    places, rows, line = {name: header.index(name) for name in columns}, [], 2
    for cells in reader:
        if (open_at := _unclosed(cells, lines[line - 1 : reader.line_num])) is not None:
            raise InputError(
                f"{path}, line {line + open_at}: a quote opens here and never closes: mend it"
            )
        if cells == [END]:
            break
        if cells:
            _check_length(cells, len(header), may_be_short, f"{path}, line {line}")
            row = {n: cells[i] if i < len(cells) else None for n, i in places.items()}
            rows.append((line, row))
        line = reader.line_num + 1
    if not rows:
        raise InputError(f"{path}: a header and no rows: get it again by python data/download.py")
    return rows


def _check_length(cells: list[str], expected: int, may_be_short: bool, where: str) -> None:
    if len(cells) > expected or (len(cells) < expected and not may_be_short):
        raise InputError(f"{where}: {len(cells)} cells, expected {expected}: mend the row")


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
