"""A sonnet's lines with what their form is: rhymes by the scheme ABAB CDCD EFEF GG, syllables."""

from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError, excerpt, notice
from engine.sonnets import PROMPT_LINES, verses
from programs.decoding.sonnet_form import SCHEME, count_syllables, dictionary, do_rhyme, last_word

TEMPLATES = Path(__file__).with_name("templates")  # how a page shows them
LONGEST_LINE, MOST_LINES = 160, 30  # that a page shows


@dataclass(frozen=True)
class Verse:
    """letter: in the scheme, "" beyond 14 lines; partners: numbers of the lines that rhyme with it.

    syllables: None where the dictionary is not installed; given: a line of the prompt.
    """

    text: str
    letter: str
    given: bool
    syllables: int | None
    partners: tuple[int, ...]


@dataclass(frozen=True)
class MarkedSonnet:
    """pairs: how many of the scheme's pairs of lines rhyme; None without the dictionary."""

    verses: list[Verse]
    pairs: int | None
    cut: int  # lines that are not shown

    @property
    def mean_syllables(self) -> float:
        return sum(verse.syllables for verse in self.verses) / max(len(self.verses), 1)


def has_dictionary() -> bool:
    """Whether rhymes and syllables can be told; if not, a note says what is missing."""
    try:
        dictionary()
    except InputError as error:
        notice(f"sonnets are shown without marks: {error}")
        return False
    return True


def mark(text: str, marked: bool) -> MarkedSonnet:
    """marked: look up rhymes and syllables, which needs the dictionary."""
    lines = [excerpt(line, LONGEST_LINE) for line in verses(text)]
    shown = lines[:MOST_LINES]
    ends = [last_word(line) for line in shown[: len(SCHEME)]]
    found = []
    for i, line in enumerate(shown):
        letter = SCHEME[i] if i < len(SCHEME) else ""
        others = [j for j in range(len(ends)) if letter and j != i and SCHEME[j] == letter]
        rhymes = tuple(j + 1 for j in others if marked and do_rhyme(ends[i], ends[j]))
        count = count_syllables(line) if marked else None
        found.append(Verse(line, letter, i < PROMPT_LINES, count, rhymes))
    pairs = sum(len(verse.partners) for verse in found) // 2 if marked else None
    return MarkedSonnet(found, pairs, len(lines) - len(shown))
