"""Copies of trees in main memory, for which a GPU is not waited for.

Its tensors go into page-locked memory (cudaHostAlloc): the copies are queued between the kernels
of two steps, and the caller goes on. Such memory is slow to get, so the next copy has it again.
"""

from collections.abc import Callable
from typing import Protocol

import torch


class Queue(Protocol):
    """What copies a device's tensors in the order of its work."""

    def buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        """Room for one like it in main memory."""

    def copy(self, buffer: torch.Tensor, tensor: torch.Tensor) -> None:
        """Copy it when its turn comes; what changes it later comes after that."""

    def arrival(self) -> Callable[[], None]:
        """A function that waits, in any thread, until all copies so far are made."""


class CudaQueue:
    """The current stream: "CUDA semantics" in PyTorch's documentation, "pinned memory buffers"."""

    def buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def copy(self, buffer: torch.Tensor, tensor: torch.Tensor) -> None:
        buffer.copy_(tensor, non_blocking=True)

    def arrival(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record()
        return event.synchronize


QUEUES: dict[str, Queue] = {"cuda": CudaQueue()}  # by type of device; others are waited for


class HostCopies:
    """Copies of one tree after another, each where the one before was."""

    def __init__(self):
        self.buffers: dict[tuple, torch.Tensor] = {}  # by a tensor's place in the tree

    def of(self, tree: dict) -> tuple[dict, Callable[[], None]]:
        """Nested dicts, lists and tuples with copies of their tensors, and what waits for these.

        The copy may be read, in any thread, after that function has returned.
        """
        queues: set[Queue] = set()
        copy = self._copied(tree, (), queues)
        arrivals = [queue.arrival() for queue in queues]

        def arrived() -> None:
            for wait in arrivals:
                wait()

        return copy, arrived

    def _copied(self, value, place: tuple, queues: set[Queue]):
        if isinstance(value, torch.Tensor):
            return self._copied_tensor(value.detach(), place, queues)
        if isinstance(value, dict):
            return {k: self._copied(item, (*place, k), queues) for k, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = enumerate(value)
            return type(value)(self._copied(item, (*place, i), queues) for i, item in items)
        return value

    def _copied_tensor(self, tensor, place: tuple, queues: set[Queue]) -> torch.Tensor:
        kind = tensor.device.type
        if kind not in QUEUES:
            return tensor.clone() if kind == "cpu" else tensor.cpu()
        queues.add(queue := QUEUES[kind])
        buffer = self.buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = self.buffers[place] = queue.buffer(tensor)
        queue.copy(buffer, tensor)
        return buffer
