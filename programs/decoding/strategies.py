"""Strategies of decoding.py: dataclasses of options, each called with prompts to go on from.

decoding.py has the formulas and papers. Sampling is determined by the job's generator; apart from
it, each prompt is continued as it would be without the others.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from engine.errors import InputError
from engine.generation import choose
from engine.records import Record
from engine.sonnets import verses
from programs.decoding import sonnet_form, sonnet_writer
from programs.decoding.rows import Rows
from programs.decoding.rules import keep_min_p, keep_typical, repeat_less
from programs.decoding.search import beam_search, contrastive_search, sample

ANY, AT_LEAST_0, ABOVE_ZERO = (-math.inf, math.inf), (0, math.inf), (1e-9, math.inf)
SHARE, AT_LEAST_1 = (0, 1), (1, math.inf)


@dataclass
class Job:
    """Prompts to be continued: (b, t), right-padded, and what strategies need to know."""

    model: nn.Module  # a GPT-2 `gpt`, and its `tokenizer`
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    most: int  # new tokens
    generator: torch.Generator | None = None
    known: tuple[Record, ...] = ()  # sonnets whose last words may end lines
    draft: nn.Module | None = None  # a smaller model with the same tokenizer

    @property
    def end(self) -> int:
        return self.model.tokenizer.eos_token_id

    def rows(self, most: int | None = None, model: nn.Module | None = None) -> Rows:
        gpt = (model or self.model).gpt
        return Rows(gpt, self.input_ids, self.attention_mask, most or self.most)


class Strategy:
    """A dataclass, whose fields are the options; called with a job, it gives a text a prompt."""

    name: str
    ranges: ClassVar = {}  # option -> (smallest, largest); those of base classes hold, too

    def __post_init__(self):
        for kind in reversed(type(self).__mro__):
            for option, (low, high) in vars(kind).get("ranges", {}).items():
                self.check(option, low, high)

    def __call__(self, job: Job) -> list[torch.Tensor]:
        raise NotImplementedError

    def check(self, option: str, low: float, high: float) -> None:
        """Refuse an option that is not finite, or outside low <= value <= high."""
        value = getattr(self, option)
        if not (low <= value <= high and math.isfinite(value)):
            expected = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
            raise InputError(f"--strategy {self.name}: {option}={value}, expected {expected}")


class Sampling(Strategy):
    """Samples from the logits that `cut` keeps, after temperature and repetition penalty."""

    ranges: ClassVar = {"temperature": AT_LEAST_0, "repetition": ABOVE_ZERO}

    def draw(self, logits, generator):
        """(b, v) -> (b,); a strategy may overwrite it, or only `cut`."""
        return choose(self.cut(logits), 1.0, generator=generator)

    def cut(self, logits):
        return logits

    def pick(self, generator):
        """The function by which `sample` picks the next tokens."""

        def pick(logits, rows):
            if self.repetition != 1:
                logits = repeat_less(logits, rows.seen(logits.shape[-1]), self.repetition)
            if self.temperature == 0:
                return logits.argmax(dim=-1)
            return self.draw(logits / self.temperature, generator)

        return pick

    def __call__(self, job):
        return sample(job.rows(), self.pick(job.generator), job.end).texts()


@dataclass
class Sample(Sampling):
    name = "sample"
    temperature: float = 1.2
    top_p: float = 0.9
    top_k: int = 0
    repetition: float = 1.0
    ranges: ClassVar = {"top_p": SHARE, "top_k": AT_LEAST_0}

    def draw(self, logits, generator):
        return choose(logits, 1.0, top_k=self.top_k, top_p=self.top_p, generator=generator)


@dataclass
class MinP(Sampling):
    name = "min_p"
    p: float = 0.1
    temperature: float = 1.5
    repetition: float = 1.0
    ranges: ClassVar = {"p": SHARE}

    def cut(self, logits):
        return keep_min_p(logits, self.p)


@dataclass
class Typical(Sampling):
    name = "typical"
    mass: float = 0.9
    temperature: float = 1.0
    repetition: float = 1.0
    ranges: ClassVar = {"mass": (1e-9, 1)}

    def cut(self, logits):
        return keep_typical(logits, self.mass)


@dataclass
class BestOf(Sample):
    """Ranked by the model's own p(y), whatever distribution was sampled from."""

    name = "best_of"
    n: int = 8
    length_penalty: float = 1.0
    ranges: ClassVar = {"n": AT_LEAST_1, "length_penalty": ANY}

    def __call__(self, job):
        rows = sample(job.rows().repeated(self.n), self.pick(job.generator), job.end)
        added = rows.lengths - rows.prompts
        scores = (rows.likelihood / added**self.length_penalty).view(-1, self.n)
        best = torch.arange(len(scores), device=scores.device) * self.n + scores.argmax(dim=1)
        return rows.select(best).texts()


@dataclass
class Beam(Strategy):
    name = "beam"
    beams: int = 4
    length_penalty: float = 1.0
    ranges: ClassVar = {"beams": AT_LEAST_1, "length_penalty": ANY}

    def __call__(self, job):
        finished = beam_search(job.rows(), end=job.end, **vars(self))
        return [hypotheses[0].tokens for hypotheses in finished]


@dataclass
class DiverseBeam(Beam):
    name = "diverse_beam"
    groups: int = 2
    diversity: float = 0.5
    ranges: ClassVar = {"groups": AT_LEAST_1, "diversity": AT_LEAST_0}

    def __post_init__(self):
        super().__post_init__()
        if self.beams % self.groups:
            raise InputError(
                f"--strategy {self.name}: beams={self.beams}, groups={self.groups}: expected "
                f"groups of equal size"
            )


@dataclass
class Contrastive(Strategy):
    name = "contrastive"
    k: int = 4
    alpha: float = 0.6
    ranges: ClassVar = {"k": AT_LEAST_1, "alpha": SHARE}

    def __call__(self, job):
        return contrastive_search(job.rows(), end=job.end, **vars(self)).texts()


@dataclass
class Sonnet(Strategy):
    """syllables: of a line; candidates: last words that are scored in full."""

    name = "sonnet"
    temperature: float = 0.8
    top_p: float = 0.9
    syllables: int = 10
    candidates: int = 24
    ranges: ClassVar = {
        "temperature": AT_LEAST_0,
        "top_p": SHARE,
        "syllables": (4, 20),
        "candidates": AT_LEAST_1,
    }

    def __call__(self, job):
        lines = [line for sonnet in job.known for line in verses(sonnet.text)]
        form = sonnet_form.SonnetForm(
            job.model.tokenizer,
            job.model.gpt.config.vocab_size,
            vocabulary={sonnet_form.last_word(line) for line in lines},
            budget=self.syllables,
        )
        writer = sonnet_writer.Writer(
            job.rows(len(sonnet_form.SCHEME) * sonnet_writer.LINE_TOKENS),
            form.to(job.input_ids.device),
            temperature=self.temperature,
            top_p=self.top_p,
            candidates=self.candidates,
            generator=job.generator,
        )
        return writer.write().texts()
