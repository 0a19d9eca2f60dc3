"""The gradient of one optimizer step, added up over its batches.

    objective = Σ loss_fn(logits, batch) / targets + Σ penalties      targets: of the whole step

Divided by the targets of all batches and workers, the parts of a step give the gradient of the one
large batch, however it is cut.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from engine.batches import TokenScores, count_targets, split_batch, to_device
from engine.compiling import compiler_errors
from engine.devices import free_cache, matmul_precision, widest_float
from engine.errors import InputError, is_out_of_memory
from engine.extension import Extension
from engine.mixed_precision import LossScaler, autocast
from engine.options import FitOptions
from engine.parallel import Worker, all_reduce
from engine.sharding import is_part


@dataclass(frozen=True)
class Objective:
    """What a step minimises. network: the model, perhaps compiled or data-parallel."""

    model: nn.Module
    network: nn.Module
    forward: Callable
    loss_fn: Callable
    extensions: list[Extension]
    worker: Worker
    options: FitOptions
    scaler: LossScaler

    def backward(self, batch: dict, targets, share) -> torch.Tensor:
        """Add the gradient of one part of a step; returns its summed loss and right answers, (2,).

        targets: of the whole step; share: of these that the part has.
        """
        keeps = not is_part(self.network)  # else a cache would keep the gathered weights
        with autocast(self.options, self.worker.device, cache=keeps):
            logits = self.forward(self.network, batch)
            loss = self.loss_fn(logits, batch)
            objective = loss / targets
            for extension in self.extensions:
                objective = objective + share * extension.penalty(self.model, batch, logits)
        for extension in self.extensions:
            extension.before_backward(self.model, batch)
        # torch averages over workers; the sum is wanted
        self.scaler.scale(objective * self.worker.world_size).backward()
        wide = widest_float(loss.device)
        return torch.stack([loss.detach().to(wide), count_correct(logits, batch).to(wide)])

    def differentiate(self, take: Callable[[], torch.Tensor]) -> torch.Tensor:
        """take() leaves a gradient and returns its figures: done again where an extension moves to.

        Returns the first figures, those at the model's own weights.
        """
        figures = take()
        for extension in self.extensions:
            if moved := extension.differentiated(self.model):
                with moved:
                    take()
        return figures


class Gradients:
    """Leaves the gradient of a step in the parameters' `.grad`."""

    def __init__(self, objective: Objective, optimizer, *, tf32: bool, compile: str | None, log):
        self.objective, self.optimizer, self.worker = objective, optimizer, objective.worker
        self.tf32, self.compile, self.log = tf32, compile, log
        self.micro_batch = None  # rows that fit into memory at once; None: a whole batch

    def of(self, group: list[dict]) -> tuple[float, torch.Tensor]:
        """The gradient of the mean loss over all targets of the group, on all workers.

        Returns these targets, and this worker's summed loss and right answers, (2,), which nobody
        has waited for. If a GPU's memory does not suffice, it begins again with half the rows.
        """
        local = float(sum(count_targets(batch) for batch in group))
        [targets] = all_reduce([local], self.worker)
        with self.precision():
            while True:
                try:
                    with compiler_errors(self.compile):
                        add_up = functools.partial(self._add_up, group, targets)
                        return targets, self.objective.differentiate(add_up)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self._halve_micro_batch(group, error)

    def after_step(self) -> None:
        """Called when an optimizer step was made, and not skipped, after the extensions."""

    def precision(self):
        """The context in which matrices are multiplied."""
        return matmul_precision("high") if self.tf32 else contextlib.nullcontext()

    def _add_up(self, group: list[dict], targets: float) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        pieces = [p for batch in group for p in split_batch(batch, self.micro_batch)]
        figures = []
        for i, piece in enumerate(pieces):
            network, last = self.objective.network, i + 1 == len(pieces)
            waits = not last and hasattr(network, "no_sync")  # of copies; shares are kept summed
            with network.no_sync() if waits else contextlib.nullcontext():
                share = count_targets(piece) / targets
                batch = to_device(piece, self.worker.device)
                figures.append(self.objective.backward(batch, targets, share))
        return torch.stack(figures).sum(dim=0)

    def _halve_micro_batch(self, group: list[dict], error) -> None:
        rows = self.micro_batch or max(len(batch["sent_ids"]) for batch in group)
        if rows <= 1 or self.worker.world_size > 1:
            raise InputError(
                f"out of memory with {rows} rows at a time: give a smaller --batch_size or "
                f"--model_size"
            ) from error
        self.micro_batch = -(-rows // 2)
        free_cache(self.worker.device)
        self.log(f"out of memory: going on with {self.micro_batch} rows at a time, same batch size")


@torch.no_grad()
def count_correct(logits, batch: dict) -> torch.Tensor:
    """Targets whose likeliest prediction is right: logits (…, classes) or scores, labels (…)."""
    if isinstance(logits, TokenScores):
        return logits.correct
    return (logits.argmax(dim=-1) == batch["labels"]).sum()
