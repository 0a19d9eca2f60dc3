"""What a run saves so that it can be resumed to the very same bits, and how that comes back."""

from dataclasses import asdict

import torch

from engine.checkpoint import RunFolder
from engine.errors import InputError
from engine.options import Progress
from engine.parallel import Worker, gather
from engine.state import (
    load_run,
    load_trainable_state,
    named_as_of_another_version,
    trainable_state,
)


def save_state(folder: RunFolder, progress: Progress, model, optimizer, dataset, worker) -> None:
    """Everything that `load_state` needs; of a finished run, only how it went."""
    random = torch.cat([torch.get_rng_state(), _cuda_state(worker.device)])
    tree = {
        "progress": asdict(progress),
        "data": dataset.fingerprint(),
        "random": gather(random, worker),
    }
    if not progress.finished and worker.is_main:
        tree["model"] = trainable_state(model)
        tree["optimizer"] = optimizer.state_dict()
    folder.save_last(tree)


def load_state(
    folder: RunFolder, model, optimizer, dataset, worker: Worker, metric: str
) -> Progress:
    """Put weights, moments and random state back; a finished run only tells how it went."""
    tree = load_run(folder.last, folder.task, Progress, metric)
    if tree["data"] != dataset.fingerprint():
        raise InputError(f"{folder.last}: the training data has changed since: train anew")
    if len(tree["random"]) != worker.world_size:
        raise InputError(
            f"{folder.last}: saved by {len(tree['random'])} workers, these are "
            f"{worker.world_size}: start as many"
        )
    progress = tree["progress"]
    if not progress.finished:
        load_trainable_state(model, tree["model"], folder.last)
        with named_as_of_another_version(folder.last, "an optimizer or a random state"):
            optimizer.load_state_dict(tree["optimizer"])
            _set_random_state(tree["random"][worker.rank], worker.device)
    return progress


def _cuda_state(device) -> torch.Tensor:
    if device.type != "cuda":
        return torch.empty(0, dtype=torch.uint8)
    return torch.cuda.get_rng_state(device)


def _set_random_state(random: torch.Tensor, device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(random[:size])
    if len(random) > size and device.type == "cuda":
        torch.cuda.set_rng_state(random[size:], device)
