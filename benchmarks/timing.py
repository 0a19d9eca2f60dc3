"""How things are timed here: peers alternate in one process, medians of several, hardware named."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from checkpoint import current_commit
from parallel import hardware
from utils import atomic_write


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the GPU's queue emptied before and after."""
    _synchronize()
    started = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(peers: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each peer's timer in turn, in `repeats` rounds after one that only warms up.

    A timer returns its own seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    for round in range(repeats + 1):
        for name, timer in peers.items():
            elapsed = timer()
            if round:
                times[name].append(elapsed)
    return times


def summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def environment(device: torch.device) -> dict[str, str]:
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_results(path: Path, results: dict) -> None:
    with atomic_write(path) as file:
        json.dump(results, file, indent=2)
        file.write("\n")
