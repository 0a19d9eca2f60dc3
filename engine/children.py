"""Child processes that end with their parent, whatever ended it: SIGKILL, too.

    python engine/children.py PROGRAM [flags]     PROGRAM, until standard input is closed

The system closes a pipe, or what else a child waits for, when the process at its other end is gone.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POLL = 0.5  # seconds between two looks for a launcher


def start_child(words: Sequence, **options) -> subprocess.Popen:
    """Start a program of Python's: `words` are its file, or -m and its module, and its flags.

    options: of `subprocess.Popen`.
    """
    command = [sys.executable, "-P", __file__, *map(str, words)]  # -P: no folder to import from
    return subprocess.Popen(command, stdin=subprocess.PIPE, **options)


def end_with_parent() -> None:
    """From now on, let this process of `multiprocessing` end as soon as its parent has."""
    _end_after(multiprocessing.parent_process().join)


def end_with_launcher(launcher: int) -> None:
    """From now on, let this process end soon after torchrun, its parent of this number."""

    def wait() -> None:
        while os.getppid() == launcher:  # a process without its parent gets another one
            time.sleep(POLL)

    _end_after(wait)


def _end_after(wait: Callable[[], object]) -> None:
    """End this process, at once, when the call returns."""

    def leave() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


if __name__ == "__main__":
    _end_after(lambda: os.read(sys.stdin.fileno(), 1))
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        sys.path.insert(0, os.getcwd())  # as Python itself does
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
