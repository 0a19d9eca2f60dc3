"""Files that appear whole or not at all, whatever happens meanwhile."""

import contextlib
import glob
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from engine.errors import InputError

ROOT = Path(__file__).resolve().parent.parent  # of the project


@contextlib.contextmanager
def atomic_path(path):
    """Give a temporary path beside `path`; it becomes `path`, whole, when the block ends well.

    It is fsynced and renamed; on any error it is removed and the old file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {"prefix": f".{path.name}.{process_mark()}.", "suffix": ".tmp"}
    descriptor, name = tempfile.mkstemp(dir=path.parent, **mine)
    os.close(descriptor)
    try:
        yield Path(name)
        sync(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        sync(path.parent)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)  # what a message should name
        raise


@contextlib.contextmanager
def atomic_write(path, mode: str = "w"):
    """Open a file (UTF-8 unless mode is "wb") that appears under its name whole or not at all."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file


@contextlib.contextmanager
def atomic_folder(path) -> Iterator[Path]:
    """Give a folder beside `path`; it becomes `path`, whole, when the block ends well.

    One rename does it where `path` is empty or not there. Else the old folder is .NAME.before
    meanwhile; what the new one has no file for moves into it.
    """
    path = Path(path)
    before = path.with_name(f".{path.name}.before")
    _end_replacement(before, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    mine = {"prefix": f".{path.name}.{process_mark()}.", "suffix": ".tmp"}
    scratch = Path(tempfile.mkdtemp(dir=path.parent, **mine))
    try:
        yield scratch
        for file in scratch.iterdir():
            sync(file)
        scratch.chmod(0o777 & ~_umask())
        if path.exists() and any(path.iterdir()):
            os.replace(path, before)
        os.replace(scratch, path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _end_replacement(before, path)


def _end_replacement(before: Path, path: Path) -> None:
    """Put the old folder back if there is no new one; else keep what only the old one has."""
    if not before.exists():
        return
    if not path.exists():
        os.replace(before, path)
        return
    for kept in before.iterdir():
        if not (path / kept.name).exists():
            shutil.move(kept, path / kept.name)
    shutil.rmtree(before)


def sync(path) -> None:
    """Wait until a file's bytes, or a folder's renames, would survive a power cut.

    A file is opened for writing, as Windows asks. Folders cannot be opened there, nor synced on
    some network drives: for them this is an attempt.
    """
    is_folder = os.path.isdir(path)
    with contextlib.suppress(OSError) if is_folder else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder, name: str | None = None) -> None:
    """Delete the temporary files that a killed run left in a folder, those of one file or all.

    What a living process of this machine writes just now stays.
    """
    for leftover in Path(folder).glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        if _is_in_use(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def process_mark() -> str:
    """A part of a temporary file's name that tells which process of which machine writes it."""
    return f"{os.getpid()}-{_machine()}"


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_in_use(leftover: Path) -> bool:
    marked = re.search(r"\.(\d+)-([0-9a-f]{8})\.[^.]*\.tmp$", leftover.name)
    return bool(marked) and marked[2] == _machine() and is_alive(int(marked[1]))


def is_alive(process: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:  # none of this number, in Linux's words or in Windows'
        return False
    return True


def check_writable(path) -> None:
    """Fail now, not after hours of training, if `path` cannot be written.

    What a killed run left half-written beside it goes.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder, expected the path of a file: choose another one")
    if folder.is_file():
        raise InputError(f"{folder}: a file, expected a folder: choose another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            remove_leftovers(folder, Path(path).name)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}): choose another output path or mend "
            f"the folder's permissions"
        ) from error


def check_folder_writable(path) -> None:
    """The same of a folder, for all files in it and for what was to take its place."""
    path = Path(path)
    check_writable(path / "config.json")
    remove_leftovers(path)
    remove_leftovers(path.parent, path.name)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
