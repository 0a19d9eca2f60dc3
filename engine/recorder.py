"""Work recorded once as a CUDA graph and replayed: one launch in place of one for each kernel."""

import contextlib
import functools
from collections.abc import Callable
from typing import Protocol

import torch

from engine.errors import InputError

POOL_SHARE = 0.25  # of a GPU's memory, for what recordings compute with


class Recorder(Protocol):
    """What records work on a device; all recordings share one pool of memory."""

    def run(self, work: Callable[[], None]) -> None:
        """Do the work now."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A function that does the work again, without a change to anything now."""

    def has_room(self) -> bool:
        """Whether the pool is smaller than its share of memory."""


class CudaRecorder:
    """CUDA graphs: "CUDA semantics" in PyTorch's documentation, section "CUDA Graphs"."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, side_stream(device)
        self.pool, self.held = torch.cuda.graph_pool_handle(), 0
        self.share = POOL_SHARE * torch.cuda.get_device_properties(device).total_memory

    def run(self, work: Callable[[], None]) -> None:
        """On the stream of the recordings, where autograd then finds what it made there."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )
        with torch.random.fork_rng([self.device]), refusals(), capture:
            before = torch.cuda.memory_reserved(self.device)
            work()
            self.held += torch.cuda.memory_reserved(self.device) - before
        return graph.replay

    def has_room(self) -> bool:
        return self.held < self.share


@contextlib.contextmanager
def refusals():
    """Say in one line that work does what no CUDA graph can hold."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise InputError(
            f"this step cannot be recorded as a CUDA graph ({reason}): give --eager, or let its "
            f"extension be recordable = False"
        ) from error


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one that all recorders of a device share, as cuBLAS keeps memory for each stream."""
    return torch.cuda.Stream(device)


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}  # by device type
