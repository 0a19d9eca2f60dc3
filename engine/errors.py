"""How programs end: errors for people in one line, Ctrl-C, flags, packages that are missing."""

import argparse
import contextlib
import difflib
import functools
import importlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator

from engine.help import HelpFormatter, examples, summary
from engine.signals import Stopped, interrupt, stop_signals, watch_interrupts

NOT_BEGUN = "interrupted: nothing was begun"
UNTRAINED = "nothing was being trained"
WHOLE = "what was saved is whole; a run goes on by --resume"
EXCERPT = 300  # characters that a message shows of a file's content, or of a library's message
LONGEST = 1500  # characters of a whole message
LARGEST_INT, LARGEST_FLOAT = 2**63 - 1, 3.4e38  # of the tensors that flags end up in
PATIENCE = 10  # seconds in which torchrun's first process should have failed like another one


class InputError(Exception):
    """Something outside the program is wrong: a file, a flag, a machine.

    The message is for the person at the keyboard, on one line: which file and line, what was
    found, what was expected, what to do. Programs print it and exit with code 2 (`command`).
    """


def some(names: list[str], shown: int = 5) -> str:
    """The first of many names, and how many more there are, for a message."""
    more = f", … {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more


def excerpt(value, limit: int = EXCERPT) -> str:
    """What a message shows of foreign text: one line, printable, cut with a count."""
    text = " ".join(str(value).split())
    cut = len(text) - limit
    return printable(text[:limit]) + f"… ({cut:,} more characters)" * (cut > 0)


def printable(text: str) -> str:
    """A text in which the characters that a terminal would obey are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(value, limit: int = EXCERPT) -> str:
    """The same of a value as Python writes it, text in quotes."""
    return excerpt(repr(value), limit)


def is_number(value) -> bool:
    """Whether a value out of a JSON file is an int or a finite float that can be computed with."""
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT  # not so of NaN


def notice(message: str) -> None:
    """A line on stderr about something that ends no run."""
    sys.stderr.write(f"note: {excerpt(message)}\n")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known words that look like a mistyped one, as the beginning of a message; or nothing."""
    known = list(known)
    close = [] if word in known else difflib.get_close_matches(word.lower(), known)
    return f"did you mean {' or '.join(close)}? " if close else ""


class Parser(argparse.ArgumentParser):
    """A program's flags; a wrong one is an InputError, and so one line.

    doc: the program's docstring, of which `--help` shows the first line and the commands.
    """

    def __init__(self, doc: str = "", **options):
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if getattr(spec, "parent", None):  # python -m package
            options.setdefault("prog", f"python -m {spec.name.removesuffix('.__main__')}")
        epilog = "\n\n".join(filter(None, (options.pop("epilog", ""), examples(doc))))
        options = {"description": summary(doc), "formatter_class": HelpFormatter} | options
        super().__init__(**options, epilog=epilog)
        self.register("type", int, _integer)
        self.register("type", float, _number)

    def error(self, message: str):
        raise InputError(f"{message}: see --help")


def _integer(word: str) -> int:
    """The int of a flag, if a tensor can hold it."""
    value = int(word)
    if abs(value) > LARGEST_INT:
        raise argparse.ArgumentTypeError(f"{excerpt(word, 20)}: expected at most {LARGEST_INT:.1e}")
    return value


def _number(word: str) -> float:
    """The float of a flag, if a float32 can hold it."""
    value = float(word)
    if math.isfinite(value) and abs(value) > LARGEST_FLOAT:
        raise argparse.ArgumentTypeError(f"{excerpt(word, 20)}: expected at most {LARGEST_FLOAT}")
    return value


def command(main):
    """Decorate a program's `main`: people's errors become one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # notebooks' have not
                stream.reconfigure(errors="replace")  # what a terminal cannot show ends no run
        if interrupt.came:
            leave(NOT_BEGUN, 130)
        try:
            with stop_signals():
                return main(*args, **kwargs)
        except InputError as error:
            message = str(error)
        except BrokenPipeError:  # who read the output has enough, as head has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}: free or choose another place, then repeat"
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = "out of memory: give a smaller --batch_size or --model_size"
        except KeyboardInterrupt as end:
            interrupt.came = False  # a notebook goes on
            leave_stopped(end, WHOLE)
        except Stopped as end:
            if int(os.environ.get("RANK", 0)) > 0:  # the first of torchrun's processes says it
                sys.exit(128 + end.number)
            leave_stopped(end, WHOLE)
        leave(f"error: {message}", 2)

    return run


def is_out_of_memory(error: Exception) -> bool:
    """Python's, a GPU's, or a CPU's or MPS's in torch, which have no class of their own."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(who in str(error) for who in ("DefaultCPUAllocator", "MPS backend out of memory"))
    )


def leave(message: str, code: int):
    """Exit with a line on stderr; of processes that leave alike, only torchrun's first prints it.

    The others wait: if the first one leaves, too, torchrun ends them. If it does not, the error
    was theirs alone.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
        time.sleep(PATIENCE)
    print(excerpt(message, LONGEST), file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def nothing_trained() -> Iterator[None]:
    """Where a Ctrl-C or a signal ends the block, the program's last line says that of it."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as end:
        end.add_note(UNTRAINED)
        raise


def leave_stopped(end: KeyboardInterrupt | Stopped, message: str):
    """Exit after a Ctrl-C or a signal with a line that says which, then its note or the message."""
    message = "; ".join(getattr(end, "__notes__", [])) or message
    number = getattr(end, "number", signal.SIGINT)
    name = signal.Signals(number).name
    how = "interrupted" if number == signal.SIGINT else f"stopped by {name}"
    leave(f"{how}: {message}", 128 + number)


def _end_imports(kind, error, trace) -> None:
    """An error that nobody caught: of a Ctrl-C while a program imports, one line."""
    if hasattr(sys, "ps1") or not (interrupt.came or issubclass(kind, KeyboardInterrupt)):
        sys.__excepthook__(kind, error, trace)  # ps1: somebody types into Python itself
    else:
        leave(NOT_BEGUN, 130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    watch_interrupts()
    sys.excepthook = _end_imports


def optional(module: str, needed_by: str, package: str = ""):
    """Import a module of a package that requirements.txt leaves out.

    needed_by, and the package's name where pip knows it by another one: for the error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # of the package, or of one that it needs itself
        missing = (error.name or module).partition(".")[0]
        package = package if package and missing == module.partition(".")[0] else missing
        raise InputError(f"{needed_by} needs {package}: pip install {package}") from error
