"""Where the time of a training step goes: to the host, to the device, to launches, to recording.

A step is all from the end of one optimizer step to that of the next: what the loop around it does
counts, too. Nobody waits for the device in between, so a host that is ahead of it shows its own
time; the device's time is between CUDA events at the same places. Launches and the time in which
the device was busy are torch.profiler's.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile, schedule

from engine.recorder import RECORDERS

TRACED = 6  # steps at most that the profiler looks at, after one to warm up
KERNELS = ("cudaLaunchKernel", "cuLaunchKernel")  # and names that begin so
GRAPHS = ("cudaGraphLaunch",)


class Recordings:
    """How many recordings were made, and how long that took."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0

    @contextlib.contextmanager
    def watched(self):
        """Count what recorders that are made in this context record, then and later."""
        watched = {kind: partial(self._made, make) for kind, make in RECORDERS.items()}
        with mock.patch.dict(RECORDERS, watched):
            yield

    def _made(self, make: Callable, device):
        recorder = make(device)
        recorder.record = partial(self._record, recorder.record)
        return recorder

    def _record(self, record: Callable, work: Callable):
        with stopwatch(self._add):
            return record(work)

    def _add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@contextlib.contextmanager
def stopwatch(note: Callable[[float], object]):
    """Tell `note` how many seconds the host spent in the block."""
    started = time.perf_counter()
    try:
        yield
    finally:
        note(time.perf_counter() - started)


@contextlib.contextmanager
def calls_timed(owner, name: str):
    """Give a list to which each call of this method adds the host's seconds."""
    times: list[float] = []
    method = getattr(owner, name)

    def timed(*arguments):
        with stopwatch(times.append):
            return method(*arguments)

    with mock.patch.object(owner, name, timed):
        yield times


@contextlib.contextmanager
def after_each_step(call: Callable[[], object]):
    """Let the function be called whenever any optimizer has taken a step."""
    handle = register_optimizer_step_post_hook(lambda *_: call())
    try:
        yield
    finally:
        handle.remove()


def step_times(work: Callable, device: torch.device) -> dict[str, float]:
    """Median milliseconds a step of what `work` does: of the host, and of a CUDA device."""
    host, events = [], []

    def mark() -> None:
        host.append(time.perf_counter())
        if device.type == "cuda":
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()

    with after_each_step(mark):
        work()
    if len(host) < 2:
        return {}
    found = {"host_ms": 1000 * statistics.median(b - a for a, b in pairs(host))}
    if events:
        torch.cuda.synchronize(device)
        found["device_ms"] = statistics.median(a.elapsed_time(b) for a, b in pairs(events))
    return found


def pairs(values: list) -> list[tuple]:
    """Each value and the next one."""
    return list(itertools.pairwise(values))


def traced(work: Callable, steps: int, device: torch.device) -> dict[str, float]:
    """Launches a step, and milliseconds in which the device was busy, of some of the steps.

    steps: how many `work` takes; of one alone there are no figures.
    """
    active = min(TRACED, steps - 1)
    if active < 1:
        return {}
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] * (device.type == "cuda")
    plan = schedule(wait=0, warmup=1, active=active, repeat=1)
    with profile(activities=kinds, schedule=plan) as trace, after_each_step(trace.step):
        work()
    return counted(trace.key_averages(), active)


def counted(events, steps: int) -> dict[str, float]:
    """The figures of so many steps, by the profiler's sums for each name."""
    busy = sum(
        event.self_device_time_total
        for event in events
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    )
    return {
        "launches": sum(event.count for event in events if event.key.startswith(KERNELS)) / steps,
        "graphs": sum(event.count for event in events if event.key.startswith(GRAPHS)) / steps,
        "busy_ms": busy / 1000 / steps,  # from microseconds
    }
