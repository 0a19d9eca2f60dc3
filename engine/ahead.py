"""Batches put together in a thread before training asks for them, so that no GPU waits for one."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

DEPTH = {"cpu": 0}  # groups; on a CPU, a thread only takes time from the steps
DEPTH_ELSEWHERE = 4


@contextlib.contextmanager
def groups_of(loader, size: int, first: int, device: torch.device) -> Iterator[Iterator]:
    """The loader's groups of `size` batches from the first-th on, ahead of training where it helps.

    The thread ends with the block.
    """
    groups = loader.groups(size, first=first)
    depth = DEPTH.get(device.type, DEPTH_ELSEWHERE)
    if depth and not loader.follows_model:
        groups = ahead(groups, depth)
    with contextlib.closing(groups):
        yield groups


def ahead(items: Iterable, depth: int) -> Iterator:
    """The items in order; a thread takes up to `depth` of them before it is their turn.

    An error in the thread is raised when its item's turn comes, with the thread's traceback. The
    thread ends at the end of the items, or when this iterator is closed. It takes one item each
    time that it is told to and never waits for room, so closing waits for one item at most.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        taken = deque(thread.submit(next, source, end) for _ in range(depth))
        try:
            while (item := taken.popleft().result()) is not end:
                taken.append(thread.submit(next, source, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
