"""Texts of one's own, of flags or of the standard input, checked before a model reads them."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from engine.errors import InputError, excerpt, quoted
from engine.records import Record

STDIN = "-"


def check_texts(flag: str, texts: Iterable[str], *, stdin: bool) -> None:
    """Refuse what is no text; stdin: whether "-" stands for the lines of the standard input."""
    for text in texts:
        if not text.strip():
            more = ", or - for the lines of stdin" if stdin else ""
            raise InputError(f"{flag} {quoted(text)}: empty: give a text{more}")
        if text == STDIN and not stdin:
            raise InputError(f"{flag} -: found -, expected a text: stdin is not read here")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{flag} {excerpt(text)}: not UTF-8: give it as UTF-8") from error


def given_texts(flag: str, texts: Iterable[str]) -> Iterator[str]:
    """The texts of a flag; "-" stands for the lines of the standard input that are not blank."""
    for text in texts:
        yield from stdin_lines(flag) if text == STDIN else [text.strip()]


def stdin_lines(flag: str) -> Iterator[str]:
    """The standard input's lines, each as soon as it is there; not one is an error."""
    empty = True
    for number, line in enumerate(_stdin(flag), start=1):
        if text := _decoded(line, f"{flag} {STDIN}", first=number).strip():
            empty = False
            yield text
    if empty:
        raise InputError(f"{flag} {STDIN}: the standard input is empty: give a text a line")


def given_prompt(path: str) -> Record:
    """The opening lines of a sonnet in a file, or on the standard input."""
    where = f"--prompt {path}"
    try:
        data = _stdin("--prompt").read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}: give a text file, or - for stdin") from error
    text = _decoded(data, where)
    if not text.strip():
        raise InputError(f"{where}: empty, expected the first three lines of a sonnet")
    return Record("1", text)


def _stdin(flag: str) -> BinaryIO:
    """The bytes of the standard input; its text depends on the locale."""
    if sys.stdin is None:
        raise InputError(f"{flag} {STDIN}: the standard input is closed: give it a file or a pipe")
    return sys.stdin.buffer


def _decoded(data: bytes, where: str, first: int = 1) -> str:
    """The text of bytes whose first line has this number."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start)
        raise InputError(
            f"{where}, line {line}: not UTF-8: byte 0x{data[error.start]:02x}: save it as UTF-8"
        ) from error
