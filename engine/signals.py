"""Signals to a program: SIGTERM, SIGHUP and Ctrl-C end a run after it has saved, SIGUSR1 saves.

Outside of training the first two raise `Stopped`, and Ctrl-C KeyboardInterrupt, at once. Training
defers them to where nothing is half done. torchrun ends its workers by SIGTERM when one of them
fails or when it gets a signal itself, and by SIGKILL 30 seconds later: only training defers there.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

LAUNCHER = os.getppid()  # noted before the imports that take seconds: torchrun may end meanwhile
AGAIN = 0.05  # seconds after which an interrupt that was swallowed comes again
STOPPING = b"\nstopping where nothing is half done; Ctrl-C again stops at once\n"


class Stopped(BaseException):
    """A signal asked for the end: of a cluster that wants its machine back, or of a person."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@dataclass
class Asked:
    """What deferred signals have asked for: the number of the one that stops, and a save."""

    stop: int | None = None
    save: bool = False

    def check(self) -> None:
        """End here if a signal asked for it."""
        if self.stop is not None:
            raise Stopped(self.stop)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise `Stopped`, and SIGUSR1 does nothing."""
    stopping = {} if _started_by_torchrun() else {"SIGTERM": _stop, "SIGHUP": _stop}
    with _handled({**stopping, "SIGUSR1": _ignore}):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Asked]:
    """In the block, signals are only noted, in what it gives; a second Ctrl-C interrupts at once.

    One that the block did not look at any more ends the program after it.
    """
    asked = Asked()

    def stop(number, frame):
        if number == signal.SIGINT:
            if asked.stop is not None:
                interrupt(number, frame)
            with contextlib.suppress(OSError):  # print may not be called in the middle of a print
                os.write(2, b"" if _started_by_torchrun() else STOPPING)
        asked.stop = number

    def save(number, frame):
        asked.save = True

    with _handled({"SIGTERM": stop, "SIGHUP": stop, "SIGINT": stop, "SIGUSR1": save}):
        yield asked
    asked.check()


@contextlib.contextmanager
def _handled(handlers: dict) -> Iterator[None]:
    """In the block these handle their signals, where so far the system or this module does."""
    free = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in handlers if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers if free}
    before = {number: old for number, old in before.items() if old in _replaceable()}
    for number in before:
        signal.signal(number, handlers[signal.Signals(number).name])
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _started_by_torchrun() -> bool:
    return "RANK" in os.environ


def _replaceable() -> tuple:
    return signal.SIG_DFL, signal.default_int_handler, _stop, _ignore, interrupt


def _stop(number, frame) -> None:
    raise Stopped(number)


def _ignore(number, frame) -> None:
    pass


def interrupt(number, frame) -> None:
    """Ctrl-C as ever, and noted: packages in C may fail by it in other words, or swallow it."""
    interrupt.came = True
    signal.default_int_handler(number, frame)


interrupt.came = False


def _interrupt_main_thread() -> None:
    """Also out of a system call that waits, where the system can do that."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _raise_again(unraisable) -> None:
    """An interrupt in the middle of a callback of Python's own, which loses it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(AGAIN, _interrupt_main_thread).start()
    else:
        sys.__unraisablehook__(unraisable)


def watch_interrupts() -> None:
    """From now on, a Ctrl-C is noted and never lost, unless somebody else handles it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    if threading.current_thread() is threading.main_thread():  # others may not
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = _raise_again
