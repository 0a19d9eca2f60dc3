"""Writes sonnets line by line, inside of what sonnet_form.py lets through.

A line's last word is the likeliest, by the model, of the words w that may stand there,

    w* = argmax_w  log p(w | x) + log p(a mark or a new line | x, w)

and the tokens before it are drawn: Ghazvininejad et al. 2016; sonnet_form.py says what differs.
"""

from dataclasses import dataclass

import torch

from engine.errors import InputError
from engine.generation import choose
from engine.sonnets import verses
from programs.decoding.rows import Rows
from programs.decoding.sonnet_form import (
    PIECES,
    SCHEME,
    WORD_TOKENS,
    Choices,
    SonnetForm,
    count_syllables,
    last_word,
)

SHORTEST_BODY, LONGEST_BODY = 8, 44  # tokens of a line before its last word
AFTER_BODY = PIECES + WORD_TOKENS + 2  # tokens: a word completed, the last one, a mark, a new line
LINE_TOKENS = LONGEST_BODY + AFTER_BODY


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
        given = [verses(form.tokenizer.decode(text)) for text in rows.texts()]
        ends = [[last_word(line) for line in lines] for lines in given]
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
