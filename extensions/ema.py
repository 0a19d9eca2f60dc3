"""EMA: what is evaluated and kept is a running average of the weights, which moves less than they.

    θ̄_t = β θ̄_{t−1} + (1 − β) θ_t,    θ̂_t = θ̄_t / (1 − βᵗ)      Kingma & Ba 2014, section 7.2
    the same in one line:    θ̂_t = θ̂_{t−1} + (1 − β) / (1 − βᵗ) · (θ_t − θ̂_{t−1})

Training goes on from θ; dev figures, the best epoch and the predictions come from θ̂. Differs from
the paper in that β is an option of its own and not Adam's β₂. 1 / (1 − β) is about the number of
steps that count: β belongs well below the length of a run.

    python classifier.py --fine-tune-mode full-model --extension ema:decay=0.99
"""

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from engine.errors import InputError
from engine.extension import Extension
from extensions.averaged_weights import AveragedWeights, trained


class WeightAverage(Extension):
    """An average θ̂ of all trained weights, in the model, so that its checkpoints have it.

    A subclass says in `share` how much of the newest weights goes into it.
    """

    recordable = True
    steps: ClassVar[int | None] = None  # that were made, as soon as the model was asked

    def share(self, step: int) -> float:
        """The weight of θ_t in θ̂_t at step t, from 1; 0 leaves the average alone."""
        raise NotImplementedError

    def prepare_model(self, model) -> None:
        if hasattr(model, "average"):
            raise InputError("ema, swa: two averages of the weights: choose one of them")
        average = AveragedWeights(model)
        average.register_buffer("step", torch.tensor(0))
        average.register_buffer("begun", torch.tensor(False))
        model.average = average

    @torch.no_grad()
    def after_step(self, model) -> None:
        average = model.average
        average.step += 1
        self.steps = int(average.step) if self.steps is None else self.steps + 1
        share = self.share(self.steps)
        if share:
            average.begun.fill_(True)
            average.move(model, share)

    @contextlib.contextmanager
    def evaluated(self, model):
        """θ̂ in the place of θ, as soon as there is one."""
        if not model.average.begun:
            yield
            return
        own = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
        _fill(model, model.average.of(model))
        try:
            yield
        finally:
            _fill(model, own)


@torch.no_grad()
def _fill(model, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in trained(model).items():
        parameter.copy_(weights[name])


@dataclass
class ExponentialAverage(WeightAverage):
    """decay β."""

    decay: float = 0.99

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise InputError(f"ema: decay={self.decay}: expected one in [0, 1)")

    def share(self, step: int) -> float:
        return (1 - self.decay) / (1 - self.decay**step)
