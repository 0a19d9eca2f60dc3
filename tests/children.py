"""Actions in a child process, which may be killed at any moment of its writing."""

import os

from engine import files


def in_child(action) -> int:
    """Run in a forked process; returns how it ended, as `os.waitpid` says."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            action()
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def at_write(monkeypatch, number: int, action) -> None:
    """Do something at the nth fsync: between writing a file and giving it its name, or after."""
    count, sync = iter(range(1, 10_000)), files.sync

    def counting(path):
        if next(count) == number:
            action()
        sync(path)

    monkeypatch.setattr(files, "sync", counting)
