"""Sonnets that keep to their form while they are decoded: fourteen lines, rhymes, ten syllables.

A line is written in three steps. Its body is drawn from the model, out of the tokens that a small
automaton lets through: a capital first, then whole words and their endings, marks between words,
and no word that would leave less room than the shortest last word takes. Its last word is the
model's choice (sonnet_writer.py) among those that rhyme with the line's partner or, where it has
none yet, those for which rhymes are known; of them, words with the syllables that are left are
preferred. Then comes a mark or none, and a new line, or after the fourteenth the end token.

Guaranteed, whatever the model: texts of a prompt's lines and as many more as make 14, each one not
empty; no token outside the automaton's set is ever drawn; and each line that the scheme
ABAB CDCD EFEF GG gives a partner before it rhymes with this, by the CMU Pronouncing Dictionary (the
same sounds from the last stressed vowel on, in a word that sounds otherwise), wherever the
dictionary has such a word, of letters only and at most 16 tokens. It may have none for a line of
the prompt; the last words that are chosen here have some. Guided only: about ten syllables a line,
counted by the dictionary, and by groups of vowels where it does not know a word; that no last word
and no rhyme comes twice. Stress is left to the model.

Ghazvininejad et al. 2016, "Generating Topical Poetry" (Hafez). Differs from the paper in that the
text goes on from given lines, forwards, that no word is chosen before its line, and that metre is
counted in syllables, not iambs.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from engine.errors import InputError, optional
from engine.sonnets import verses

SCHEME = "ABABCDCDEFEFGG"
MARKS = ",.;:!?"
ENOUGH = 3  # rhymes in the vocabulary that make a word one to begin a rhyme with
PIECES = 3  # tokens that may lengthen a word
WORD_TOKENS = 16  # the longest last word

# -- sounds ----------------------------------------------------------------------------------------


@functools.cache
def dictionary():
    """The package `pronouncing`, its dictionary read."""
    pronouncing = optional("pronouncing", "the form of sonnets")
    pronouncing.init_cmu()
    return pronouncing


@functools.lru_cache(100_000)
def syllables(word: str) -> int:
    """By the dictionary's first pronunciation; else groups of vowels but for a silent e or ed."""
    phones = dictionary().phones_for_word(word)
    if phones:
        return max(dictionary().syllable_count(phones[0]), 1)
    word = re.sub(r"[^a-z]", "", word.lower().removesuffix("'s"))
    silent = re.search(r"[^aeiouytd]ed$|[^aeiouyl]e$|[aeiouy]le$", word)
    return max(len(re.findall(r"[aeiouy]+", word)) - bool(silent), 1)


def words_of(text: str) -> list[str]:
    """Lower-case words; apostrophes inside them, or before a letter, belong to them."""
    return re.findall(r"'?[a-z]+(?:'[a-z]+)*", text.lower().replace("’", "'"))


def count_syllables(text: str) -> int:
    return sum(syllables(word) for word in words_of(text))


@functools.lru_cache(100_000)
def rhyming_parts(word: str) -> frozenset[str]:
    """The sounds from the last stressed vowel on, of each pronunciation; none of unknown words."""
    sounds = dictionary()
    return frozenset(sounds.rhyming_part(phones) for phones in sounds.phones_for_word(word))


def do_rhyme(one: str, other: str) -> bool:
    return one != other and bool(rhyming_parts(one) & rhyming_parts(other))


def form_report(texts: list[str]) -> dict[str, float]:
    """Rhyming share of the scheme's pairs of lines, and the mean of syllables a line."""
    rhymed, counts = [], []
    for text in texts:
        lines = verses(text)
        counts += [count_syllables(line) for line in lines]
        ends = [last_word(line) for line in lines[: len(SCHEME)]]
        for i in range(len(SCHEME)):
            earlier = SCHEME.index(SCHEME[i])
            if earlier < i:
                rhymed.append(i < len(ends) and do_rhyme(ends[earlier], ends[i]))
    return {"rhymed": sum(rhymed) / len(rhymed), "syllables": sum(counts) / len(counts)}


def last_word(line: str) -> str:
    return (words_of(line) or [""])[-1]


# -- what may come next ----------------------------------------------------------------------------


class Choices:
    """Words that may end a line, as {word: its tokens}, by their number of syllables."""

    def __init__(self, words: dict[str, list[int]]):
        self.words, self.by_count = words, defaultdict(list)
        for word in words:
            self.by_count[syllables(word)].append(word)
        self.least = min(self.by_count)

    def nearest(self, left: int, used: Iterable[str]) -> list[str]:
        """Words of `left` syllables, or of the nearest number there is; new ones if there are."""
        new = {count: [w for w in ws if w not in used] for count, ws in self.by_count.items()}
        groups = {count: ws for count, ws in new.items() if ws} or self.by_count
        return groups[min(groups, key=lambda count: (abs(count - left), count))]

    @functools.cached_property
    def single(self) -> dict[int, list[int]]:
        """The tokens of the words that are one token, by their number of syllables."""
        return {
            count: [self.words[w][0] for w in ws if len(self.words[w]) == 1]
            for count, ws in self.by_count.items()
        }


class SonnetForm:
    """The automaton of lines for one tokenizer, and the words that rhyme in its vocabulary.

    vocabulary: words beside the tokenizer's own, such as the last words of known sonnets.
    """

    def __init__(self, tokenizer, v: int, *, vocabulary: Iterable[str] = (), budget: int = 10):
        self.tokenizer, self.budget, self.end = tokenizer, budget, tokenizer.eos_token_id
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        names += [""] * (v - len(names))  # a space is written Ġ, a new line Ċ

        def mask(pattern):
            return torch.tensor([bool(re.fullmatch(pattern, name or "")) for name in names])

        self.first = mask("[A-Z][a-z]*")  # (v,), as are the next ones
        self.start = mask("Ġ[A-Za-z][a-z]*")
        self.inside = mask("'?[a-z]+")
        self.marks = mask(f"[{re.escape(MARKS)}]")
        self.newline = names.index("Ċ")
        starts = self.start.nonzero()[:, 0].tolist()
        self.syllables = torch.zeros(v, dtype=torch.long)
        self.syllables[starts] = torch.tensor([syllables(names[i][1:]) for i in starts])
        own = [names[i][1:] for i in starts]
        words = {w for w in own if w.islower() and len(w) > 1} | set(vocabulary)
        words = sorted(word for word in words if rhyming_parts(word))
        self.by_part = defaultdict(list)
        for word in words:
            for part in rhyming_parts(word):
                self.by_part[part].append(word)
        common = [word for word in words if len([*islice(self._found(word), ENOUGH)]) == ENOUGH]
        self.beginnings = self._choices(common or [word for word in words if self.rhymes(word)])
        if self.beginnings is None:
            raise InputError("sonnet: no word of the vocabulary has a rhyme: give --sonnet_path")

    def _found(self, word: str) -> Iterator[str]:
        """Rhymes in the vocabulary; words that sound the same are none."""
        found = (w for part in rhyming_parts(word) for w in self.by_part[part])
        return (w for w in found if not _same_sound(word, w))

    def rhymes(self, word: str) -> list[str]:
        """Rhymes in the vocabulary; where it has none, those of the whole dictionary."""
        whole = (w for w in dictionary().rhymes(word) if w.isascii() and w.isalpha())
        return sorted(set(self._found(word))) or [w for w in whole if not _same_sound(word, w)]

    def _choices(self, words: list[str]) -> Choices | None:
        encoded = self.tokenizer([f" {word}" for word in words])["input_ids"] if words else []
        fitting = {w: ids for w, ids in zip(words, encoded, strict=True) if len(ids) <= WORD_TOKENS}
        return Choices(fitting) if fitting else None

    def choices(self, ends: list[str]) -> Choices:
        """What may end the next line, after lines with these last words."""
        earlier = SCHEME.index(SCHEME[len(ends)])
        bound = earlier < len(ends) and self._choices(self.rhymes(ends[earlier]))
        return bound or self.beginnings

    def used(self, ends: list[str]) -> set[str]:
        """Last words that repeat one of these, or begin with a rhyme that another pair has."""
        if SCHEME.index(SCHEME[len(ends)]) < len(ends):
            return set(ends)
        parts = frozenset().union(*(rhyming_parts(word) for word in ends))
        return set(ends) | {word for part in parts for word in self.by_part.get(part, [])}

    def body(self, line: list[int], choices: Choices, most: int) -> torch.Tensor | None:
        """(v,), true at tokens that may follow in a line's body; None: its last word comes now."""
        if not line:
            return self.first
        left = self.budget - count_syllables(self.tokenizer.decode(line))
        if left <= choices.least or len(line) >= most:
            return None
        allowed = self.start & (self.syllables <= left - choices.least)
        allowed[choices.single.get(left, [])] = True
        if self.may_lengthen(line):
            allowed |= self.inside
        if not self.marks[line[-1]]:
            allowed |= self.marks
        return allowed if allowed.any() else None

    def closes(self, token: int, line: list[int], choices: Choices) -> bool:
        """Whether a token drawn in a body is a word that takes all syllables that are left."""
        left = self.budget - count_syllables(self.tokenizer.decode(line))
        return token in choices.single.get(left, []) and bool(line)

    def may_lengthen(self, line: list[int]) -> bool:
        """Whether a line's last token is of a word of which few tokens are there."""
        tail = [bool(self.inside[token]) for token in line[-PIECES:]]
        return not self.marks[line[-1]] and not (len(tail) == PIECES and all(tail))

    def to(self, device) -> "SonnetForm":
        for name in ("first", "start", "inside", "marks", "syllables"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def _same_sound(one: str, other: str) -> bool:
    phones = dictionary().phones_for_word
    return bool(set(phones(one)) & set(phones(other)))
