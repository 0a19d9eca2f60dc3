"""Where the sonnets of a file begin: lines that are headings, and verses that only look so."""

import re
import unicodedata
from collections.abc import Iterator

from engine.errors import InputError, quoted
from engine.tables import LINE_END, read_text

MARK = r"[\s#*()\[\].:–—-]*"
ROMAN = r"(?=[CLXVI])C{0,3}(?:XC|XL|L?X{0,4})(?:IX|IV|V?I{0,4})"  # 1 to 399
NUMBER_ALONE = re.compile(r"\s*(\d+)\s*")
HEADING = re.compile(rf"{MARK}(?:SONNET{MARK})?(?:(\d{{1,9}})|({ROMAN})){MARK}")


def headed(path) -> list[tuple[str, int, list[str]]]:
    """Of each sonnet its number, the line of its heading, and the lines that follow."""
    found = []
    for place, line in _numbered_lines(read_text(path)):
        last, _, lines = found[-1] if found else (None, 0, [])
        number, signs = _heading(line, last, lines)
        if signs == 1:
            raise InputError(
                f"{path}, line {place}: found {quoted(line.strip())} in sonnet {last}, which may "
                f"be a heading or a verse: write a heading in digits alone, or end a verse with a "
                f"comma"
            )
        if signs == 2:
            found.append((number, place, []))
        elif visible(line).strip() or lines:
            lines.append(line)
    return found


def verses_only(text: str, number: str) -> str:
    """The text of a sonnet of this number as `read_sonnets` gives it back, whoever wrote it.

    A line that might be taken for a heading gets a comma; one in which nothing can be seen is no
    first line.
    """
    lines = []
    for _, line in _numbered_lines(text.strip()):
        if not lines and not visible(line).strip():
            continue
        _, signs = _heading(line, number, lines)
        lines.append(f"{line}," if signs else line)
    return "\n".join(lines).strip()


def _numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(an editor's line number, line without spaces at its end).

    What cuts a line for Python alone, as a form feed does, is no line end for editors.
    """
    for place, line in enumerate(LINE_END.split(text), start=1):
        for part in line.splitlines() or [""]:
            yield place, part.rstrip()


def visible(line: str) -> str:
    """A line without control and format characters, as spaces of no width are."""
    return "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cf") or c.isspace())


def _heading(line: str, last: str | None, before: list[str]) -> tuple[str | None, int]:
    """The number in a line that looks like a heading, and how many of the two signs it has.

    last: the number of the heading before, None if there is none; before: the lines since then.
    """
    line = visible(line)
    alone, found = NUMBER_ALONE.fullmatch(line), HEADING.fullmatch(line.upper())
    if alone:
        return alone[1], 2
    if not found:
        return None, 0
    number = int(found[1]) if found[1] else _roman(found[2])
    after_blank = bool(before) and not visible(before[-1]).strip()
    return str(number), 2 if last is None else after_blank + (str(number - 1) == last)


def _roman(numeral: str) -> int:
    """A letter before a larger one counts negative."""
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-v if v < after else v for v, after in zip(values, following, strict=True))
