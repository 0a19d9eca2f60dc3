"""SWA: what is evaluated and kept is the plain mean of the weights at regular steps of a run.

    w_SWA ← (w_SWA · n + w) / (n + 1)    every c steps           Izmailov et al. 2018, algorithm 1

Training goes on from w; dev figures, the best epoch and the predictions come from w_SWA as soon as
there is one. Differs from the paper in that the learning rate is whatever the run's flags say (the
default, constant, is one of the paper's two; it suits SWA better than one that falls to 0), and
that no batch normalisation has to be computed anew, since GPT-2 has none.

    python classifier.py --fine-tune-mode full-model --extension swa:start=500,every=50
"""

from dataclasses import dataclass

from engine.errors import InputError
from extensions.ema import WeightAverage


@dataclass
class StochasticWeightAveraging(WeightAverage):
    """The weights at steps start, start + every, … are averaged (every is c)."""

    start: int = 1
    every: int = 1

    def __post_init__(self):
        if self.start < 1 or self.every < 1:
            raise InputError(
                f"swa: start={self.start}, every={self.every}: expected steps of at least 1"
            )

    def share(self, step: int) -> float:
        n, rest = divmod(step - self.start, self.every)  # n are in the mean already
        return 0.0 if rest or n < 0 else 1 / (n + 1)
