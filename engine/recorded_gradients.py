"""The gradient of a step from recorded passes, engine/step_graph.py, where a run may."""

import functools
import math
from collections.abc import Callable, Mapping

import torch

from engine.batches import count_targets
from engine.compiling import compiler_errors
from engine.extension import technique_of
from engine.gradients import Gradients, Objective
from engine.options import FitOptions
from engine.parallel import Worker
from engine.recorder import Recorder
from engine.step_graph import StepGraphs


def make_gradients(
    objective: Objective,
    optimizer,
    options: FitOptions,
    log: Callable,
    recorders: Mapping[str, Callable],
) -> Gradients:
    """Recorded ones on devices with a recorder, if nothing in the run forbids it."""
    worker = objective.worker
    make = recorders.get(worker.device.type)
    how = {"tf32": options.tf32, "compile": options.compile, "log": log}
    if make is None or not may_record(options, worker, unrecordable(objective), log):
        return Gradients(objective, optimizer, **how)
    return RecordedGradients(objective, optimizer, make(worker.device), **how)


def may_record(options: FitOptions, worker: Worker, techniques: list[str], log: Callable) -> bool:
    """Whether a run's steps may be recorded; a line names the techniques that they are not for.

    Compiled ones may if all have one shape: for another one, torch might compile anew, and that is
    no work for a recording.
    """
    compiled = options.compile and not options.one_shape
    if options.eager or compiled or worker.world_size > 1:
        return False
    if techniques:
        log(f"{', '.join(techniques)}: no recorded steps with this extension, they run eagerly")
    return not techniques


def unrecordable(objective: Objective) -> list[str]:
    """The techniques of this run, or of one before that shaped the model, which must be eager."""
    acting = {technique_of(e) for e in objective.extensions if not e.recordable}
    return sorted(acting | getattr(objective.model, "unrecordable", set()))


class RecordedGradients(Gradients):
    """From when memory runs out, they are the eager ones."""

    def __init__(self, objective: Objective, optimizer, recorder: Recorder, **how):
        super().__init__(objective, optimizer, **how)
        optimizer.zero_grad(set_to_none=True)
        optimizer.gradients_stay = True
        self.graphs: StepGraphs | None = StepGraphs(
            objective.backward,
            [p for p in objective.model.parameters() if p.requires_grad],
            recorder,
            device=self.worker.device,
            most_positions=most_positions(objective.model),
            log=self.log,
        )

    def of(self, group: list[dict]) -> tuple[float, torch.Tensor]:
        if self.graphs is None:
            return super().of(group)
        counts = [count_targets(batch) for batch in group]
        try:
            with self.precision(), compiler_errors(self.compile):
                replay = functools.partial(self._replay, group, counts)
                return float(sum(counts)), self.objective.differentiate(replay)
        except torch.OutOfMemoryError:
            self.optimizer.gradients_stay = False
            self.graphs = None  # what it holds is free with the next allocation that needs it
        self.log("out of memory: the recorded steps are given up, the run goes on eagerly")
        return super().of(group)

    def after_step(self) -> None:
        if self.graphs:
            self.graphs.begun = True

    def _replay(self, group: list[dict], counts: list[int]) -> torch.Tensor:
        self.graphs.begin()
        targets = float(sum(counts))
        for batch, count in zip(group, counts, strict=True):
            self.graphs.add(batch, targets, count / targets)
        return self.graphs.figures.clone()


def most_positions(model) -> float:
    """How long the model's texts may be."""
    config = getattr(getattr(model, "gpt", None), "config", None)
    return getattr(config, "max_position_embeddings", math.inf)
