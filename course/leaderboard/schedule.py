"""Score what is new, a few submissions at once, each team's in the order of their times.

A team's next submission waits for the one before, since that decides how many of the tries on test
are left.
"""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue

from course.leaderboard.scoring import Result
from course.leaderboard.sources import Submission
from course.leaderboard.store import History

Score = Callable[[Path, tuple[str, ...]], Result]
DIED = "its scoring ended the process twice, out of memory perhaps: look at it by hand"


class Processes:
    """Call `score` in `count` processes; what kills one costs its own result and nobody else's."""

    def __init__(self, score: Score, count: int):
        self.inner, self.free = score, SimpleQueue()
        for _ in range(count):
            self.free.put(self._start())

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which then ends them
        context = get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=ignore)

    def score(self, path: Path, splits: tuple[str, ...]) -> Result:
        process = self.free.get()
        try:
            for _ in range(2):
                try:
                    return process.submit(self.inner, path, splits).result()
                except BrokenProcessPool:
                    process.shutdown()
                    process = self._start()
            return Result(problem=DIED, again=True)
        finally:
            self.free.put(process)

    def close(self) -> None:
        while not self.free.empty():
            self.free.get().shutdown()


def score_all(
    history: History, found: list[tuple[int, Submission]], score: Score, at_once: int
) -> Iterator[None]:
    """Score and record; gives None for each submission that is done, also if it was before.

    found: (id in the history, submission), the earliest first. score: called in threads.
    """
    teams: dict[str, deque[tuple[int, Submission]]] = {}
    for number, submission in found:
        teams.setdefault(submission.team, deque()).append((number, submission))
    ready, running = deque(teams), {}
    with ThreadPoolExecutor(at_once) as threads:
        while ready or running:
            while ready and len(running) < at_once:
                waiting = teams[team := ready.popleft()]
                while waiting:
                    number, submission = waiting.popleft()
                    if splits := history.to_score(number):
                        future = threads.submit(score, submission.path, splits)
                        running[future] = (number, team, splits)
                        break
                    yield
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, team, splits = running.pop(future)
                history.record(number, splits, future.result())
                ready.append(team)
                yield
