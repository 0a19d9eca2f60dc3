"""Timing: peers take turns in rounds, and each peak of memory is that of one process."""

import contextlib
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from engine.children import end_with_parent
from engine.devices import hardware
from engine.files import atomic_write
from engine.provenance import current_commit

FORGET = Path("/proc/self/clear_refs")


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the GPU's queue emptied before and after."""
    _synchronize()
    started = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


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


class Alone:
    """An object in a process of its own, waiting between its turns: its memory is its own."""

    def __init__(self, make: Callable, *arguments):
        self.pool = _process()
        try:
            self.pool.submit(_keep, make, arguments).result()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments):
        """What the object's method returns."""
        return self.pool.submit(_ask, method, arguments).result()

    def close(self) -> None:
        self.pool.shutdown()


_kept: list = []  # in the process of an `Alone`: its object


def _keep(make: Callable, arguments) -> None:
    _kept[:] = [make(*arguments)]


def _process() -> ProcessPoolExecutor:
    """One fresh process, which ends with this one, even if this one is killed."""
    return ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    )


def _ask(method: str, arguments):
    return getattr(_kept[0], method)(*arguments)


def alone(work: Callable, *arguments):
    """The result of one call in a process of its own."""
    with _process() as pool:
        return pool.submit(work, *arguments).result()


def forget_peak(device: torch.device) -> None:
    """Let `peak_mb` count from here, where the machine can do that: not what loading took."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif FORGET.exists():
        with contextlib.suppress(OSError):
            FORGET.write_text("5", encoding="utf-8")  # see proc(5)


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
