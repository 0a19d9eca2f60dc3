"""What a run saves so that it can be resumed to the very same bits, and how that comes back."""

from dataclasses import asdict

import torch

from engine.checkpoint import RunFolder
from engine.devices import random_state, set_random_state
from engine.errors import InputError
from engine.inputs import TRAIN_ROWS
from engine.options import FitOptions, Progress
from engine.parallel import Worker, barrier, broadcast, gather
from engine.sharding import gathered, sharded_like, sharded_moments
from engine.state import (
    check_state,
    expect,
    load_checkpoint,
    load_run,
    load_trainable_state,
    named_as_of_another_version,
    trainable_state,
)


def take_over_shorter_run(folder: RunFolder, options: FitOptions, worker: Worker) -> None:
    """Let a run with more epochs go on from the one with fewer, if that is all that differs."""
    shorter = None if folder.last.exists() else folder.shorter_run()
    if shorter is None:
        return
    if not options.any_length:
        raise InputError(
            f"--resume: {shorter} has fewer epochs, and its learning rates depend on their number "
            f"(--schedule {options.schedule}, --warmup {options.warmup:g}): train anew without "
            f"--resume"
        )
    barrier(worker)  # every worker has seen it
    folder.take_over(shorter)
    barrier(worker)


def save_state(run) -> None:
    """Everything that `load_state` needs, of a `Trainer`.

    Of a finished run only how it went, unless it may go on to more epochs.
    """
    folder, progress, worker = run.folder, run.progress, run.worker
    tree = {"progress": asdict(progress), "random": gather(random_state(worker.device), worker)}
    if TRAIN_ROWS not in folder.inputs:
        folder.inputs = folder.inputs | {TRAIN_ROWS: run.loader.dataset.fingerprint()}
    if run.options.any_length or not progress.finished:
        tree["model"] = gathered(trainable_state(run.model))
        tree["optimizer"] = gathered(run.optimizer.state_dict())
        tree["scaler"] = run.scaler.state_dict()
    folder.save_last(tree)


def load_state(run) -> Progress:
    """Put weights, moments, scale and random state back; a finished run only tells how it went."""
    folder, worker = run.folder, run.worker
    tree = load_run(folder.last, folder.task, Progress, run.options.metric)
    if _train_rows(tree, folder.last) != run.loader.dataset.fingerprint():
        raise InputError(f"{folder.last}: the training data has changed since: train anew")
    if len(tree["random"]) != worker.world_size:
        raise InputError(
            f"{folder.last}: saved by {len(tree['random'])} workers, these are "
            f"{worker.world_size}: start as many"
        )
    progress = tree["progress"]
    progress.finished = progress.finished and run.is_over(progress)
    if not progress.finished:
        expect(tree, {"model": dict, "optimizer": dict}, folder.last)
        load_trainable_state(run.model, tree["model"], folder.last)
        what = "an optimizer, a loss scale or a random state"
        with named_as_of_another_version(folder.last, what):
            run.optimizer.load_state_dict(sharded_moments(tree["optimizer"], run.optimizer))
            if run.scaler.is_enabled():
                run.scaler.load_state_dict(tree["scaler"])
            set_random_state(tree["random"][worker.rank], worker.device)
    return progress


def _train_rows(tree: dict, path) -> str:
    """The fingerprint of the rows that a run trains on: one of its inputs, `data` in old files."""
    if "data" in tree:
        return tree["data"]
    expect(tree, {"inputs": dict}, path)
    expect(tree["inputs"], {TRAIN_ROWS: str}, path)
    return tree["inputs"][TRAIN_ROWS]


@torch.no_grad()
def load_best(model, folder: RunFolder, worker: Worker) -> None:
    """Put the best epoch's weights into the model of every worker; the main one reads the file."""
    best = {}
    if worker.is_main:
        best = load_checkpoint(folder.best, folder.task)["model"]
        check_state(model, best, folder.best)
    for name, mine in trainable_state(model).items():
        whole = torch.empty(mine.shape, dtype=mine.dtype, device=mine.device)
        if worker.is_main:
            whole.copy_(best[name])
        broadcast([whole], worker)
        mine.copy_(sharded_like(mine, whole))
