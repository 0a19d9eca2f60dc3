"""Progress bars on stderr: at most four pictures a second, and none where it is no terminal."""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from tqdm import tqdm

SECONDS = 0.25  # between two pictures
STEPS = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}"
_shown = ContextVar("shown", default=True)


@contextlib.contextmanager
def bars(shown: bool) -> Iterator[None]:
    """In the block bars appear, or do not."""
    before = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(before)


class Bar(tqdm):
    """A bar that is gone when it has ended."""

    def __init__(self, items: Iterable, desc: str, **how):
        hidden = None if _shown.get() else True  # None: where stderr is no terminal
        how |= {"mininterval": SECONDS, "leave": False, "disable": hidden}
        super().__init__(items, desc=desc, **how)


class EpochBar(Bar):
    """The steps of an epoch, with loss, learning rate, rows a second and the time that is left."""

    def __init__(self, groups: Iterable[list[dict]], desc: str, *, first: int, total: int):
        super().__init__(groups, desc, initial=first, total=total, bar_format=STEPS)
        self.rows = 0

    def note(self, group: list[dict], workers: int, loss: float | None, rate: float) -> None:
        """Say how it stands after a step. loss: of the steps that were looked at so far."""
        if self.disable:
            return
        self.rows += workers * sum(len(batch["token_ids"]) for batch in group)
        seconds = max(self.format_dict["elapsed"], 1e-9)
        said = "" if loss is None else f"loss {loss:.3f}, "
        said += f"lr {rate:.3g}, {self.rows / seconds:,.1f} rows/s"
        self.set_postfix_str(said, refresh=False)
