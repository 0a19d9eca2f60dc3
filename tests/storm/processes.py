"""Processes of the storm: forked from one that has imported everything, or started as by a person.

A forked one takes milliseconds to begin, where Python and torch need seconds.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.files import ROOT

MARK = "STORM_OF"  # in the environment of all that a start begins
LOGS = (".out", ".err")  # of stdout and stderr, made in this order
CONTEXT = multiprocessing.get_context("fork")


class Started:
    """A command that runs in a folder, and all processes that it begins; logs: .out and .err."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path, *, forked: bool):
        self.log, self.mark = log, f"{os.getpid()}-{time.monotonic_ns()}"
        target = _fork if forked else _execute
        for suffix in LOGS:
            log.with_suffix(suffix).unlink(missing_ok=True)
        self.process = CONTEXT.Process(target=target, args=(words, folder, log, self.mark))
        self.process.start()
        while not log.with_suffix(LOGS[-1]).exists():
            time.sleep(0.001)
        self.began = time.monotonic()

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end; `join` would wait for that of another program without a limit."""
        deadline = time.monotonic() + seconds
        while self.process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.process.exitcode is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def code(self) -> int:
        return self.process.exitcode

    def import_modules(self) -> None:
        """Import here what a forked command imported: the next one has it already."""
        for name in self.log.with_suffix(".modules").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    @property
    def said(self) -> list[str]:
        """The lines on stderr, without those about something that ends no run."""
        text = self.log.with_suffix(".err").read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip() and not line.startswith("note:")]

    @property
    def printed(self) -> bool:
        """Whether there is anything on stdout."""
        return self.log.with_suffix(LOGS[0]).stat().st_size > 0

    def send(self, number: int, process: int | None = None) -> None:
        """A signal to the command, or to a process that it began."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process or self.process.pid, number)

    def others(self) -> list[int]:
        """The living processes that the command began, where Linux's /proc shows them."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, session = _state(folder)
                environment = (folder / "environ").read_bytes().split(b"\0")
                mine = session == self.process.pid or f"{MARK}={self.mark}".encode() in environment
                if mine and state != "Z" and int(folder.name) != self.process.pid:
                    found.append(int(folder.name))
        return found

    def orphans(self, patience: float) -> list[int]:
        """Those that are still there some seconds after the command has ended; then they go."""
        deadline = time.monotonic() + patience
        while (found := self.others()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in found:
            self.send(signal.SIGKILL, process)
        return found


def _state(folder: Path) -> tuple[str, int]:
    """A process's state and its session, see proc(5)."""
    fields = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return fields[0], int(fields[3])


def _settle(folder: Path, log: Path, mark: str) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ |= {MARK: mark, "TOKENIZERS_PARALLELISM": "false"}  # a fork has lost its threads
    for number, suffix in enumerate(LOGS, start=1):
        descriptor = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)


def _execute(words: Sequence[str], folder: Path, log: Path, mark: str) -> None:
    _settle(folder, log, mark)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.execv(sys.executable, [sys.executable, *words])


def _fork(words: Sequence[str], folder: Path, log: Path, mark: str) -> None:
    """What Python does with these words, in this process, which has its modules already."""
    _settle(folder, log, mark)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, "utf-8", closefd=False) for n in (1, 2))
    code = 0
    try:
        try:
            if words[0] == "-m":
                sys.argv[:] = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv[:] = words
                runpy.run_path(words[0], run_name="__main__")
        except Exception:
            code = 1
            sys.__excepthook__(*sys.exc_info())
        except KeyboardInterrupt:
            sys.excepthook(*sys.exc_info())
    except SystemExit as stop:
        code = stop.code
    finally:
        log.with_suffix(".modules").write_text("\n".join(sys.modules), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
