"""The strategies by name, and the one that needs a second model."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from engine.errors import InputError
from engine.extension import parse_options
from programs.decoding.speculative import Tally, distribution, speculative_sample
from programs.decoding.strategies import (
    AT_LEAST_0,
    AT_LEAST_1,
    SHARE,
    Beam,
    BestOf,
    Contrastive,
    DiverseBeam,
    MinP,
    Sample,
    Sonnet,
    Strategy,
    Typical,
)


@dataclass
class Speculative(Strategy):
    """gamma: tokens that the draft writes ahead; the rest is as of `sample`."""

    name = "speculative"
    gamma: int = 4
    temperature: float = 1.2
    top_p: float = 0.9
    top_k: int = 0
    ranges: ClassVar = {
        "gamma": AT_LEAST_1,
        "temperature": AT_LEAST_0,
        "top_p": SHARE,
        "top_k": AT_LEAST_0,
    }

    def __post_init__(self):
        super().__post_init__()
        self.tally = Tally()

    def __call__(self, job):
        how = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return speculative_sample(
            job.rows(),
            job.rows(model=job.draft),
            gamma=self.gamma,
            rule=partial(distribution, **how),
            end=job.end,
            generator=job.generator,
            tally=self.tally,
        ).texts()


STRATEGIES = {
    kind.name: kind
    for kind in (Sample, MinP, Typical, BestOf, Beam, DiverseBeam, Contrastive, Sonnet, Speculative)
}


def load_strategy(flag: str) -> Strategy:
    """`"min_p:p=0.1"` -> the strategy with these options."""
    name, _, text = flag.partition(":")
    if name not in STRATEGIES:
        raise InputError(f"--strategy {name}: there are {', '.join(STRATEGIES)}")
    kind = STRATEGIES[name]
    return kind(**parse_options(f"--strategy {name}", text, kind))
