"""Sonnets that keep to their form while they are decoded: fourteen lines, rhymes, ten syllables.

A line is written in three steps. Its body is drawn from the model, out of the tokens that a small
automaton lets through: a capital first, then whole words and their endings, marks between words,
and no word that would leave less room than the shortest last word takes. Its last word is the
likeliest, by the model, of the words that may stand there,

    w* = argmax_w  log p(w | x) + log p(a mark or a new line | x, w)

that is, of those that rhyme with the line's partner or, where it has none yet, of those for which
rhymes are known; of them, words with the syllables that are left are preferred. Then comes a mark
or none, and a new line, or after the fourteenth the end token.

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
from dataclasses import dataclass
from itertools import islice

import torch

from extensions.decoding_search import Rows
from models.generation import choose
from utils import InputError

SCHEME = "ABABCDCDEFEFGG"
MARKS = ",.;:!?"
ENOUGH = 3  # rhymes in the vocabulary that make a word one to begin a rhyme with
PIECES = 3  # tokens that may lengthen a word
WORD_TOKENS = 16  # the longest last word
SHORTEST_BODY, LONGEST_BODY = 8, 44  # tokens of a line before its last word
AFTER_BODY = PIECES + WORD_TOKENS + 2  # tokens: a word completed, the last one, a mark, a new line
LINE_TOKENS = LONGEST_BODY + AFTER_BODY

# -- sounds ----------------------------------------------------------------------------------------


@functools.cache
def dictionary():
    """The package `pronouncing`, its dictionary read."""
    try:
        import pronouncing
    except ModuleNotFoundError as error:
        raise InputError(
            "the form of sonnets needs the package pronouncing: pip install -r "
            "requirements-optional.txt"
        ) from error
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
        lines = [line for line in text.splitlines() if line.strip()]
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


# -- writing ---------------------------------------------------------------------------------------


@dataclass
class Poem:
    """A text of `rows`: the last words of its lines so far, and where its next line begins."""

    ends: list[str]
    begin: int
    choices: Choices | None = None


class Writer:
    """Writes the missing lines of all texts, line by line; the draws as in `choose`.

    candidates: as many last words, of the likeliest first tokens, are scored in full.
    """

    def __init__(
        self,
        rows: Rows,
        form: SonnetForm,
        *,
        temperature: float,
        top_p: float,
        candidates: int,
        generator: torch.Generator | None = None,
    ):
        self.rows, self.form, self.candidates = rows, form, candidates
        self.temperature, self.top_p, self.generator = temperature, top_p, generator
        given = [form.tokenizer.decode(text).splitlines() for text in rows.texts()]
        ends = [[last_word(line) for line in lines if line.strip()] for lines in given]
        self.poems = [Poem(words, n) for words, n in zip(ends, rows.lengths.tolist(), strict=True)]
        missing = max(len(SCHEME) - len(words) for words in ends)
        room = int((rows.limits - rows.lengths).min()) // max(missing, 1)
        self.most = min(room - AFTER_BODY, LONGEST_BODY)
        if self.most < SHORTEST_BODY:
            raise InputError(
                f"sonnet: room for {room} tokens a line, expected at least "
                f"{SHORTEST_BODY + AFTER_BODY}: take a model with more positions"
            )

    def write(self) -> Rows:
        while self.unfinished():
            self.write_bodies()
            for i in self.unfinished():
                self.write_last_word(i)
            self.end_lines()
        return self.rows

    def unfinished(self) -> list[int]:
        """The texts that have fewer than 14 lines."""
        return [i for i, poem in enumerate(self.poems) if len(poem.ends) < len(SCHEME)]

    def line(self, i: int) -> list[int]:
        return self.rows.tokens[i, self.poems[i].begin : self.rows.lengths[i]].tolist()

    def write_bodies(self) -> None:
        """Grow all unfinished texts' lines until each needs nothing but its last word."""
        waiting = self.unfinished()
        for i in waiting:
            self.poems[i].choices = self.form.choices(self.poems[i].ends)
        while waiting:
            logits = self.rows.logits()
            allowed = torch.ones_like(logits, dtype=torch.bool)
            for i in list(waiting):
                mask = self.may_follow(i, logits[i])
                if mask is None:
                    waiting.remove(i)
                else:
                    allowed[i] = mask
            chosen = self.choose(logits, allowed)
            closing = [
                i
                for i in waiting
                if self.form.closes(int(chosen[i]), self.line(i), self.poems[i].choices)
            ]
            waiting = [i for i in waiting if i not in closing]
            self.append(chosen, waiting)

    def may_follow(self, i: int, logits) -> torch.Tensor | None:
        """As the automaton says; but a word that the model thinks unfinished goes on first."""
        line = self.line(i)
        mask = self.form.body(line, self.poems[i].choices, self.most)
        if mask is None and self.form.may_lengthen(line):
            inside = self.form.inside
            if logits.softmax(dim=-1)[inside].sum() > 0.5:
                return inside
        return mask

    def write_last_word(self, i: int) -> None:
        """Add the best-scored of the words that may end text i's line."""
        poem = self.poems[i]
        left = self.form.budget - count_syllables(self.form.tokenizer.decode(self.line(i)))
        words = poem.choices.nearest(left, used=self.form.used(poem.ends))
        ids = [poem.choices.words[word] for word in words]
        text = self.rows.select(self.rows.numbers[i : i + 1], room=WORD_TOKENS)
        first = text.logits()[0, [tokens[0] for tokens in ids]]
        kept = first.topk(min(self.candidates, len(ids))).indices.tolist()
        best = kept[int(self.score(text, [ids[j] for j in kept]).argmax())]
        for token in ids[best]:
            self.append(self.rows.tokens.new_full((len(self.rows),), token), [i])
        poem.ends.append(words[best])

    def score(self, text: Rows, ids: list[list[int]]) -> torch.Tensor:
        """log p of each word (its tokens) after a text, and that the line ends there; (m,)."""
        trial = text.repeated(len(ids), room=WORD_TOKENS)
        lengths = torch.tensor([len(tokens) for tokens in ids], device=trial.tokens.device)
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(tokens, device=trial.tokens.device) for tokens in ids], batch_first=True
        )
        ending = self.form.marks.clone()
        ending[[self.form.newline, self.form.end]] = True
        scores = torch.zeros(len(ids), device=trial.tokens.device)
        for j in range(padded.shape[1] + 1):
            log_p = trial.logits().log_softmax(dim=-1)
            scores += torch.where(j == lengths, log_p[:, ending].logsumexp(dim=-1), 0.0)
            if j < padded.shape[1]:
                gained = log_p.gather(1, padded[:, j : j + 1])[:, 0]
                scores += torch.where(j < lengths, gained, 0.0)
                trial.append(padded[:, j], where=j < lengths)
        return scores

    def end_lines(self) -> None:
        """After the last words a mark, if the model wants one, and the new line or the end."""
        rows = [i for i, poem in enumerate(self.poems) if poem.begin < int(self.rows.lengths[i])]
        logits = self.rows.logits()
        last = torch.full((len(self.rows),), self.form.newline, device=logits.device)
        full = [len(poem.ends) == len(SCHEME) for poem in self.poems]
        last = last.masked_fill(torch.tensor(full, device=logits.device), self.form.end)
        allowed = self.form.marks.repeat(len(self.rows), 1).scatter(1, last[:, None], True)
        chosen = self.choose(logits, allowed)
        self.append(chosen, rows)
        marked = [i for i in rows if chosen[i] != last[i]]
        self.append(last, marked)
        for i in rows:
            self.poems[i].begin = int(self.rows.lengths[i])

    def choose(self, logits, allowed) -> torch.Tensor:
        return choose(
            logits.masked_fill(~allowed, -torch.inf),
            self.temperature,
            top_p=self.top_p,
            generator=self.generator,
        )

    def append(self, chosen, rows: list[int]) -> None:
        where = torch.zeros(len(self.rows), dtype=torch.bool, device=chosen.device)
        where[rows] = True
        self.rows.append(chosen, where=where)
