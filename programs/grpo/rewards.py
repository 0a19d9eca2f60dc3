"""What a sonnet is rewarded for: figures from 0 to 1 that a program can check, and their mean.

    lines      1 − |n − 14| / 14, at least 0; n lines in all
    rhyme      share of the six pairs of ABAB CDCD EFEF GG with a line of the sample that rhyme
    syllables  mean of max(0, 1 − |s − 10| / 5) over the sample's lines, s syllables; 0 for a line
               that is missing of eleven
    new        share of the sample's lines that are no line of a training sonnet, nor of the prompt
    distinct   mean of distinct-1 and distinct-2 (Li et al. 2016, section 5.2)

A sample is what a model added to a prompt of three lines. One without a line gets 0 in all.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from engine.errors import InputError
from engine.extension import parse_options
from engine.records import Record
from engine.sonnets import verses
from evaluation import distinct_n
from programs.decoding.sonnet_form import (
    SCHEME,
    count_syllables,
    do_rhyme,
    last_word,
    words_of,
)

SYLLABLES, TOLERANCE = 10, 5  # of a line; so many too many or too few bring nothing


@dataclass(frozen=True)
class Rewards:
    """The figures of a sample; or, of the same names, their weights."""

    lines: float = 1.0
    rhyme: float = 1.0
    syllables: float = 1.0
    new: float = 1.0
    distinct: float = 1.0

    def total(self, weights: "Rewards") -> float:
        """The weighted mean."""
        figures, shares = asdict(self), asdict(weights)
        return sum(figures[n] * share for n, share in shares.items()) / sum(shares.values())


NAMES = tuple(field.name for field in fields(Rewards))


def parse_weights(text: str) -> Rewards:
    """`"rhyme=2,new=0"` -> weights; those that are not named stay 1."""
    weights = Rewards(**parse_options("--weights", text, Rewards))
    shares = asdict(weights).values()
    if not (all(0 <= share < float("inf") for share in shares) and sum(shares) > 0):
        raise InputError(f"--weights {text}: expected numbers of at least 0, one of them above 0")
    return weights


def normal(line: str) -> str:
    """A line as it is compared: its words in lower case."""
    return " ".join(words_of(line))


def known_lines(sonnets: Iterable[Record]) -> frozenset[str]:
    """All lines of these sonnets, normalised."""
    return frozenset(normal(line) for sonnet in sonnets for line in verses(sonnet.text))


def rewards(text: str, given: int, known: frozenset[str]) -> Rewards:
    """Of a whole sonnet of which so many lines were given; known: `known_lines`."""
    lines = verses(text)
    added = lines[given:]
    if not added:
        return Rewards(0, 0, 0, 0, 0)
    return Rewards(
        lines=right_length(lines),
        rhyme=rhymed(lines, given),
        syllables=right_metre(added, len(SCHEME) - given),
        new=share_new(added, known | {normal(line) for line in lines[:given]}),
        distinct=distinct("\n".join(added)),
    )


def right_length(lines: list[str]) -> float:
    return max(0.0, 1 - abs(len(lines) - len(SCHEME)) / len(SCHEME))


def rhymed(lines: list[str], given: int) -> float:
    """Share of the scheme's pairs that rhyme, those that the prompt decides left out."""
    ends = [last_word(line) for line in lines[: len(SCHEME)]]
    found = []
    for later in range(given, len(SCHEME)):
        earlier = SCHEME.index(SCHEME[later])
        if earlier < later:
            found.append(later < len(ends) and do_rhyme(ends[earlier], ends[later]))
    return sum(found) / len(found)


def right_metre(added: list[str], expected: int) -> float:
    """How near the lines are to ten syllables; expected: how many lines there should be."""
    missed = [abs(count_syllables(line) - SYLLABLES) for line in added]
    near = sum(max(0.0, 1 - count / TOLERANCE) for count in missed)
    return near / max(len(added), expected)


def share_new(added: list[str], known: frozenset[str]) -> float:
    return sum(normal(line) not in known for line in added) / len(added)


def distinct(text: str) -> float:
    return sum(distinct_n([Record("", text)], n) for n in (1, 2)) / 2
