"""Whether a text says in n words running what a dev or test file says.

A leak is an n-gram of words, case and punctuation aside, that stands in a held-out text and in none
of the training texts, which hold it anyway; a whole text counts likewise, be it shorter or longer.
Of a pair its two texts together count, too, in either order: each may be known, but not the pair.

Brown et al. 2020 ("GPT-3"), appendix C. Differs from the paper in that n is fixed, and in that
what leaks is refused, where the paper cuts it out of its training data or out of the test.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from engine.records import PairRecord

Gram = tuple | frozenset
SHORTEST = 4  # words of a held-out text that is looked for inside of another


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def texts_of(record) -> list[str]:
    """The one text of a Record, the two of a PairRecord."""
    if isinstance(record, PairRecord):
        return [record.sentence1, record.sentence2]
    return [record.text]


def windows(words: list, n: int) -> Iterator[tuple]:
    """All n-grams; of fewer words the whole."""
    for start in range(max(len(words) - n, 0) + 1):
        yield tuple(words[start : start + n])


def grams_of(record, n: int) -> Iterator[Gram]:
    """What counts as the same text, of a Record or PairRecord."""
    texts = [words_of(text) for text in texts_of(record)]
    for words in texts:
        if words:
            yield from windows(words, n)
            yield tuple(words)
    if len(texts) == 2:
        yield frozenset(map(tuple, texts))


@dataclass
class HeldOut:
    """The n-grams of held-out files that training does not have."""

    n: int
    sources: dict[Gram, str] = field(default_factory=dict)

    def add(self, records: Iterable, source: str) -> None:
        for record in records:
            for gram in grams_of(record, self.n):
                self.sources.setdefault(gram, source)

    def forget(self, records: Iterable) -> None:
        """Training texts: what they hold is no leak."""
        for record in records:
            for gram in grams_of(record, self.n):
                self.sources.pop(gram, None)

    def leak(self, record) -> str | None:
        """What leaks in a record first, in words, or None."""
        for gram in grams_of(record, self.n):
            if gram in self.sources:
                return self._said(gram)
        return None

    def leaks_of_text(self, text: str) -> dict[int, str]:
        """Line -> what leaks there, of a plain text, whose n-grams may go from line to line.

        Held-out texts of fewer than n words are looked for, too, but for the very shortest.
        """
        numbered = [
            (word, number)
            for number, line in enumerate(text.split("\n"), start=1)
            for word in words_of(line)
        ]
        found: dict[int, str] = {}
        lengths = {len(gram) for gram in self.sources if isinstance(gram, tuple)}
        for length in lengths & set(range(min(SHORTEST, self.n), self.n + 1)):
            for window in windows(numbered, length):
                gram = tuple(word for word, _ in window)
                if gram in self.sources:
                    found.setdefault(window[0][1], self._said(gram))
        return dict(sorted(found.items()))

    def _said(self, gram: Gram) -> str:
        words = gram if isinstance(gram, tuple) else [" ".join(text) for text in gram]
        joint = " " if isinstance(gram, tuple) else " / "
        return f"“{joint.join(words)}” ({self.sources[gram]})"
