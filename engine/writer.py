"""Writing in a thread, so that training goes on meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

PENDING = 2  # a best file and the last file that names it


class Writer:
    """Calls functions one after another in its thread; an error comes out at the next call here.

    After an error it calls none: a last file must not say that an older best one belongs to it.
    """

    def __init__(self):
        self.pool, self.failed = ThreadPoolExecutor(1), False
        self.pending: list[Future] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """End when all is written; an error of the block goes before one of the writing."""
        self.pool.shutdown(wait=True)
        if kind is None:
            self.wait()

    def wait(self, most: int = 0) -> None:
        """Until at most so many calls are still to be done."""
        while len(self.pending) > most:
            self.pending.pop(0).result()

    def write(self, function: Callable, tree: dict) -> None:
        """Call the function, later, with a copy of the tree as it is now.

        If two calls are not done yet, it waits, so that there are never more copies.
        """
        self.wait(PENDING - 1)
        self.pending.append(self.pool.submit(self._call, function, copied(tree)))

    def _call(self, function: Callable, tree: dict) -> None:
        if self.failed:
            return
        self.failed = True
        function(tree)
        self.failed = False


def copied(value):
    """Nested dicts, lists and tuples with copies of their tensors, on the CPU."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.clone() if value.device.type == "cpu" else value.cpu()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value
