"""Stands in for a GPU's recorder: a "replay" does the work again on the same buffers."""

from collections.abc import Callable


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
            work()

        return replay

    def has_room(self) -> bool:
        return self.recorded < self.room
