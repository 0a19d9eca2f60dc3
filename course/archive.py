"""Unpack a submission's zip, whoever wrote it: every entry is checked before one byte is written.

Python's zipfile renames absolute and parent paths in silence, follows no quota, and lets two
entries write one file. Each of these is an error here, and names the entry.
"""

import stat
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from engine.errors import InputError, quoted

MAX_FILES = 2_000
MAX_BYTES = 200_000_000  # of all files, unpacked
MAX_RATIO = 100  # unpacked bytes a packed one, of an entry above SMALL
SMALL = 1_000_000  # bytes: what is this short harms nobody, however well it packs
CHUNK = 1 << 20
KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
NOISE = ("__MACOSX", ".DS_Store", "__pycache__", ".git")  # what file managers add
AGAIN = "zip it again by python prepare_submit.py"


def unpack(zip_path: Path, folder: Path) -> list[Path]:
    """Unpack a zip into `folder`, which is made; returns the files, sorted.

    Permissions and dates are not restored. An InputError names the entry that is refused; nothing
    has been written then, but for an entry that is longer than its header says, or damaged.
    """
    zip_path, folder = Path(zip_path), Path(folder)
    try:
        with zipfile.ZipFile(zip_path) as archive:
            entries = checked(archive.infolist(), zip_path)
            folder.mkdir(parents=True, exist_ok=True)
            left = MAX_BYTES
            for name, entry in entries.items():
                left -= _write(archive, entry, folder / name, left, zip_path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{zip_path.name}: no whole zip ({error}): {AGAIN}") from error
    return sorted(folder / name for name in entries)


def checked(entries: list[zipfile.ZipInfo], zip_path: Path) -> dict[str, zipfile.ZipInfo]:
    """Path below the folder -> entry, of the files; InputError for the first that is refused."""
    files, spelt, total = {}, {}, 0
    for entry in entries:
        where = f"{zip_path.name}, entry {quoted(entry.filename)}"
        path = _path(entry, where)
        if entry.is_dir():
            continue
        _check_size(entry, where)
        total += entry.file_size
        _check_spelling(path, spelt, where)
        if path.as_posix() in files:
            raise InputError(f"{where}: stands twice, expected one file: {AGAIN}")
        files[path.as_posix()] = entry
        if len(files) > MAX_FILES:
            raise InputError(f"{where}: more than {MAX_FILES:,} files: {AGAIN}")
        if total > MAX_BYTES:
            raise InputError(f"{where}: more than {MAX_BYTES:,} bytes unpacked: {AGAIN}")
    for path in files:
        if inside := [str(p) for p in PurePosixPath(path).parents if str(p) in files]:
            where = f"{zip_path.name}, entry {quoted(path)}"
            raise InputError(f"{where}: {quoted(inside[0])} is a file, and no folder: {AGAIN}")
    return files


def _path(entry: zipfile.ZipInfo, where: str) -> PurePosixPath:
    """The entry's path, if it stays below the folder and is that of a regular file or a folder."""
    name, path = entry.filename, PurePosixPath(entry.filename)
    if path.is_absolute() or "\\" in name or ":" in name:
        raise InputError(f"{where}: an absolute path, expected one inside the zip: {AGAIN}")
    if ".." in path.parts or not path.parts:
        raise InputError(f"{where}: leads out of the folder, expected a path inside it: {AGAIN}")
    if not name.isprintable() or any(len(part.encode()) > 255 for part in path.parts):
        raise InputError(f"{where}: found a name that is no name, expected letters: {AGAIN}")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        found = KINDS.get(kind, "a device or socket")
        raise InputError(f"{where}: {found}, expected files and folders alone: {AGAIN}")
    if entry.flag_bits & 0x1:
        raise InputError(f"{where}: encrypted, expected a zip without a password: {AGAIN}")
    return path


def _check_size(entry: zipfile.ZipInfo, where: str) -> None:
    if entry.file_size > SMALL and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        raise InputError(
            f"{where}: {entry.compress_size:,} bytes that unpack to {entry.file_size:,}, expected "
            f"at most {MAX_RATIO} times as many: {AGAIN}"
        )


def _check_spelling(path: PurePosixPath, spelt: dict[str, str], where: str) -> None:
    """Refuse names that differ by case or accents' encoding alone: Macs keep one of them."""
    for part in [path, *path.parents][:-1]:
        key = unicodedata.normalize("NFC", str(part)).casefold()
        other = spelt.setdefault(key, str(part))
        if other != str(part):
            raise InputError(f"{where}: clashes with {quoted(other)}, expected one file: {AGAIN}")


def _write(archive, entry, path: Path, left: int, zip_path: Path) -> int:
    """Unpack one file and return its bytes, which the header may have told wrongly."""
    where, written = f"{zip_path.name}, entry {quoted(entry.filename)}", 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, open(path, "xb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > min(left, entry.file_size):
                raise InputError(f"{where}: longer than its header says: {AGAIN}")
            file.write(chunk)
    return written


def submission_root(folder: Path) -> Path:
    """The folder that holds the submission: the one inside, where somebody zipped the folder.

    A lone predictions folder is a submission without code, and no folder around one.
    """
    inside = [path for path in sorted(Path(folder).iterdir()) if path.name not in NOISE]
    wrapped = len(inside) == 1 and inside[0].is_dir() and inside[0].name != "predictions"
    return submission_root(inside[0]) if wrapped else Path(folder)
