"""Writing in a thread, so that training goes on meanwhile."""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from engine.host_copies import HostCopies


class Writer:
    """Calls functions one after another in its thread; an error comes out at the next call here.

    After an error it calls none: a last file must not say that an older best one belongs to it.
    """

    def __init__(self):
        self.pool, self.failed = ThreadPoolExecutor(1), False
        self.pending: dict[Callable, Future] = {}
        self.copies: dict[Callable, HostCopies] = defaultdict(HostCopies)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """End when all is written; an error of the block goes before one of the writing."""
        self.pool.shutdown(wait=True)
        self.copies.clear()
        if kind is None:
            self.wait()

    def wait(self, function: Callable | None = None) -> None:
        """Until the last call of a function is done, or all calls are."""
        for other, call in list(self.pending.items()):
            if function in (None, other) or call.done():
                del self.pending[other]
                call.result()

    def write(self, function: Callable, tree: dict) -> None:
        """Call the function, later, with a copy of the tree as it is now.

        If the function's call before is not done yet, it waits, so that there is one copy for each.
        """
        self.wait(function)
        copy, arrived = self.copies[function].of(tree)
        self.pending[function] = self.pool.submit(self._call, function, copy, arrived)

    def _call(self, function: Callable, tree: dict, arrived: Callable[[], None]) -> None:
        if self.failed:
            return
        self.failed = True
        arrived()
        function(tree)
        self.failed = False
