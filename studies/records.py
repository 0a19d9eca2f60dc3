"""The record of runs: one JSON line each, in a file for each suite.

A line holds the run (study, contestant, lr, seeds), its `settings`, its `figures`, the lines of its
metrics.jsonl (`epochs`), `seconds`, `peak_mb`, the `commands`, and commit, hardware, versions and
date. Runs of before this format have no commands, no seconds and fewer settings.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from engine.errors import InputError, is_number, notice, quoted

NEEDED = {"study": str, "contestant": str, "seeds": list, "figures": dict}  # beside settings


class Records:
    """Lines that several processes append to; a line that a killed one left torn is mended."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, suite: str) -> Path:
        return self.folder / f"{suite}.jsonl"

    def read(self, suite: str) -> list[dict]:
        """All whole lines. A last one without its end is one that was not written to the end."""
        path = self.path(suite)
        if not path.exists():
            return []
        *lines, _ = path.read_bytes().split(b"\n")
        return [_parsed(path, number, line) for number, line in enumerate(lines, 1) if line]

    def append(self, suite: str, record: dict) -> None:
        """Write one line, and wait until it is on disk."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with self._locked(suite), open(self.path(suite), "ab+") as file:
            _cut_torn_line(file, self.path(suite))
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _locked(self, suite: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{suite}.lock"):
            yield


def _cut_torn_line(file, path: Path) -> None:
    file.seek(0)
    text = file.read()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        notice(f"{path}: the last line was not written to the end: it goes, and its run is due")
        file.truncate(whole)


def _parsed(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        found = quoted(line.decode("utf-8", "backslashreplace"))
    elif wrong := _wrong(record):
        found = f"{wrong} {quoted(record[wrong])}" if wrong in record else f"no {wrong}"
    else:
        return record
    raise InputError(
        f"{path}, line {number}: {found}: expected a run as JSON: remove the line, and the run is "
        f"due again"
    )


def _wrong(record: dict) -> str | None:
    """The first field that is not as a run's."""
    kinds = NEEDED | {"settings": dict}
    for name, kind in kinds.items():
        if not isinstance({"settings": {}, **record}.get(name), kind):
            return name
    if not all(type(seed) is int for seed in record["seeds"]):
        return "seeds"
    return None if all(map(is_number, record["figures"].values())) else "figures"
