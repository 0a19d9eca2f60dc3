"""New training rows from old ones: words deleted, swapped, inserted, replaced; pairs turned round.

    n = α · (words of the row) words change, at least one                 Wei & Zou 2019, section 2
    PPMI(w, c) = max(0, log p(w, c) / (p(w) p(c)))   c within 2 words     Bullinaria & Levy 2007
    overlap(a, b) = |a ∩ b| / |a ∪ b|                of the words of two questions

Wei & Zou 2019, "EDA: Easy Data Augmentation Techniques". Differs from the paper: in the place of
WordNet's synonyms stand neighbors in the training corpus, by the cosine of PPMI vectors. Since
opposites are neighbors, too, only those are taken that speak for the row's label at least as much
as the word in whose place they come; the most frequent words stay, as the paper's stop words do.
"""

import random
from collections import Counter
from collections.abc import Callable

import numpy as np

from engine.records import PairRecord, Record
from programs.augment.leak_check import words_of

WINDOW, NEIGHBORS, STOP_WORDS = 2, 10, 50
LEAST, MOST = 5, 4000  # occurrences of a word that has neighbors, and how many words have some


class Neighbors:
    """The words of labelled texts that stand between the same words."""

    def __init__(self, records: list[Record]):
        counts = Counter(word for record in records for word in record.text.split())
        common = [word for word, _ in counts.most_common(MOST + STOP_WORDS)]
        known = [word for word in common if counts[word] >= LEAST and word.isalpha()]
        self.stop_words = set(common[:STOP_WORDS])
        self.index = {word: i for i, word in enumerate(known)}
        self.words = known
        ppmi = positive_pmi(self._together(records))
        unit = ppmi / np.linalg.norm(ppmi, axis=1, keepdims=True).clip(min=1e-12)
        similar = unit @ unit.T
        np.fill_diagonal(similar, 0)
        similar[:, [i for word, i in self.index.items() if word in self.stop_words]] = 0
        self.nearest = [
            [i for i in np.argsort(-row, kind="stable")[:NEIGHBORS] if row[i] > 0]
            for row in similar
        ]
        self.shares = self._shares(records)

    def _together(self, records) -> np.ndarray:
        """(v, v): how often two words stand within the window of each other."""
        counts = np.zeros((len(self.words), len(self.words)), dtype=np.float32)
        for record in records:
            ids = np.array([self.index.get(word, -1) for word in record.text.split()], int)
            for distance in range(1, WINDOW + 1):
                left, right = ids[:-distance], ids[distance:]
                both = (left >= 0) & (right >= 0)
                np.add.at(counts, (left[both], right[both]), 1)
        return counts + counts.T

    def _shares(self, records) -> np.ndarray:
        """(v, labels): of the rows that have a word, the share with each label."""
        counts = np.zeros((len(self.words), max(record.label for record in records) + 1))
        for record in records:
            for word in set(record.text.split()) & self.index.keys():
                counts[self.index[word], record.label] += 1
        return counts / counts.sum(axis=1, keepdims=True).clip(min=1)

    def of(self, word: str, label: int) -> list[str]:
        """What may stand in the word's place in a row with this label."""
        if word in self.stop_words or word not in self.index:
            return []
        here = self.index[word]
        least = self.shares[here, label]
        return [self.words[i] for i in self.nearest[here] if self.shares[i, label] >= least]


def positive_pmi(counts: np.ndarray) -> np.ndarray:
    """PPMI of a table of common occurrences (v, v)."""
    total = counts.sum()
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True)
    ratio = np.divide(counts * total, expected, out=np.ones_like(counts), where=expected > 0)
    return np.log(ratio.clip(min=1))


# -- one row ---------------------------------------------------------------------------------------


def changes(words: list[str], alpha: float) -> int:
    return max(1, round(alpha * len(words)))


def deletion(words, alpha: float, draw: random.Random, similar) -> list[str]:
    """Each word goes with probability α; one stays in any case."""
    return [word for word in words if draw.random() >= alpha] or [draw.choice(words)]


def swap(words, alpha: float, draw: random.Random, similar) -> list[str]:
    words = list(words)
    for _ in range(changes(words, alpha)):
        i, j = draw.randrange(len(words)), draw.randrange(len(words))
        words[i], words[j] = words[j], words[i]
    return words


def insertion(words, alpha: float, draw: random.Random, similar) -> list[str]:
    """Neighbors of random words at random places."""
    with_some = [word for word in words if similar(word)]
    words = list(words)
    for _ in range(changes(words, alpha) if with_some else 0):
        new = draw.choice(similar(draw.choice(with_some)))
        words.insert(draw.randrange(len(words) + 1), new)
    return words


def replacement(words, alpha: float, draw: random.Random, similar) -> list[str]:
    words = list(words)
    places = [i for i, word in enumerate(words) if similar(word)]
    for i in draw.sample(places, min(changes(words, alpha), len(places))):
        words[i] = draw.choice(similar(words[i]))
    return words


EDA: dict[str, Callable] = {
    "deletion": deletion,
    "swap": swap,
    "insertion": insertion,
    "replacement": replacement,
}
BY_NEIGHBORS = ("insertion", "replacement")


def changed_sentiment(record: Record, change: Callable, alpha, draw, neighbors) -> Record:
    """neighbors: None for changes that take none."""

    def similar(word: str) -> list[str]:
        return neighbors.of(word, record.label)

    words = change(record.text.split(), alpha, draw, similar)
    return Record(record.sent_id, " ".join(words), record.label)


def changed_pair(pair: PairRecord, change: Callable, alpha, draw, neighbors=None) -> PairRecord:
    """Both questions changed."""
    first, second = (
        " ".join(change(text.split(), alpha, draw, None))
        for text in (pair.sentence1, pair.sentence2)
    )
    return PairRecord(pair.sent_id, first, second, pair.label)


# -- all rows --------------------------------------------------------------------------------------


def symmetric(pairs: list[PairRecord]) -> list[PairRecord]:
    """Each pair with its questions in the other order."""
    return [PairRecord(p.sent_id, p.sentence2, p.sentence1, p.label) for p in pairs]


def overlap(pair: PairRecord) -> float:
    first, second = set(words_of(pair.sentence1)), set(words_of(pair.sentence2))
    return len(first & second) / max(len(first | second), 1)


def hard_negatives(pairs: list[PairRecord], share: float) -> list[PairRecord]:
    """The share of the pairs without paraphrases whose questions have most words in common."""
    negatives = sorted((p for p in pairs if p.label == 0), key=overlap, reverse=True)
    return negatives[: round(share * len(negatives))]
