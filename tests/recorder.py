"""Stands in for a GPU's recorder: a "replay" does the work again on the same buffers.

As in the capture of a CUDA graph, the work may not look at a number there, and no shape may follow
from one.
"""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = {  # operations whose result, or its shape, the host has to wait for
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave.Tensor"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Capture(TorchDispatchMode):
    """Refuses what CUDA refuses while a graph is captured."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        base = name.partition(".")[0]
        by_mask = base in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or LOOKS & {name, base}:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return func(*args, **(kwargs or {}))


class CallAgain:
    """room: how many recordings the pool holds."""

    def __init__(self, device=None, *, room: int = 1000):
        self.room = room
        self.eager = self.recorded = self.replayed = 0

    def run(self, work: Callable[[], None]) -> None:
        self.eager += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay():
            self.replayed += 1
            with Capture():
                work()

        return replay

    def has_room(self) -> bool:
        return self.recorded < self.room
