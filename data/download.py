"""Bring the course's data files: sentiment, Quora pairs and sonnets, each checked by its hash.

git blob hash = sha1("blob " + size in decimal + "\\0" + content)

python data/download.py                 from the course's public repository, at a pinned commit
python data/download.py --from DIR      from a folder that has them, without network
"""

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command, quoted
from engine.files import atomic_path, atomic_write, check_writable
from engine.web import Lacking, Unreachable, append, read_small

# isort: split

COMMIT = "7570cfa"
RAW_URL = f"https://raw.githubusercontent.com/cfifty/public_cs224n_gpt/{COMMIT}/data"
LIST_URL = f"https://api.github.com/repos/cfifty/public_cs224n_gpt/contents/data?ref={COMMIT}"
LARGEST_FILE = 1 << 30  # bytes
LISTING = f".listing-{COMMIT}.json"  # GitHub's answer is kept: a second call needs no network


@dataclass(frozen=True)
class Blob:
    """What identifies a file's content: its git blob hash, and its size in bytes."""

    sha: str
    size: int

    def __str__(self):
        return f"{self.size:,} bytes with git hash {self.sha}"


FILES = {
    "ids-sst-train.csv": Blob("9cb7333cb1dae49c2bd2a4b56a24882a6e8704b5", 1175139),
    "ids-sst-dev.csv": Blob("3171aa629a340809d2db4a50df8f6e5ec9420ab0", 151384),
    "ids-sst-test-student.csv": Blob("bbd2313758825f86e24416d6aad64cd93370cf7a", 313202),
    "ids-cfimdb-train.csv": Blob("cd57bcbd2f7214ea6dd1783d3e885d324b1f478d", 1693182),
    "ids-cfimdb-dev.csv": Blob("8a0f5dcf3d40189b96c801a12cd79bf8003e61de", 249095),
    "ids-cfimdb-test-student.csv": Blob("1e789c709b3ca0511f027a309b6d8bd21cde41b2", 495595),
    "sonnets.txt": Blob("66bffc291ace4660043b9aaeb21ddd5af6638f13", 83269),
    "sonnets_held_out.txt": Blob("802fcca369fbce749e1a9d0d8f61c3e2fa8a9118", 1970),
    "sonnets_held_out_dev.txt": Blob("be351ef6b0ea29a0095010809cf3f0ac4fafbd0d", 1910),
    "TRUE_sonnets_held_out_dev.txt": Blob("a68bd172ce56e3afdda72008dcf07a47b8e87e70", 7757),
}
# The course's own Quora files are known by GitHub's listing. Known here: a smaller split, of
# 16,000, 2,107 and 2,107 pairs. It counts only whole, as the splits of two sizes may overlap.
SMALL_QUORA = {
    "quora-train.csv": Blob("51026d3a64f221452844ebb66a27a54c3bfe8ceb", 2539340),
    "quora-dev.csv": Blob("febe9b13a0acf3e7e922f89d64373a78dc00b72f", 331442),
    "quora-test-student.csv": Blob("06885fb946f5e213c6209e9b6ab1110188e2268a", 326172),
}
# A source without these is told of, and no error: part 1 and the training of sonnets go without.
OPTIONAL = {"TRUE_sonnets_held_out_dev.txt", *SMALL_QUORA}
NAMES = [*FILES, *SMALL_QUORA]


def blob_of(path: Path) -> Blob:
    """The blob of a file."""
    size = path.stat().st_size
    digest = hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Blob(digest.hexdigest(), size)


def bring(source, data_dir: Path, *, force: bool = False) -> list[str]:
    """Put every file in place that can be; returns the names of those that could not.

    What is wrong with one file is told and does not stop the others; no network does.
    """
    right, failed = [], []
    for name in NAMES:
        path = data_dir / name
        try:
            blob = source.expected(name)
            if _is_right(path, blob, force):
                right.append(name)
                continue
            check_writable(path)
            source.get(path, blob)
            print(f"{path}: brought, {blob.size:,} bytes")
        except Unreachable:
            raise
        except InputError as error:
            print(f"{name} not brought: {error}", file=sys.stderr)
            if not (isinstance(error, Lacking) and name in OPTIONAL):
                failed.append(name)
    if right:
        print(f"{data_dir}: right already: {', '.join(right)}")
    return failed


def _is_right(path: Path, blob: Blob, force: bool) -> bool:
    if not path.exists():
        return False
    found = blob_of(path)
    if found != blob and not force:
        raise InputError(f"{path}: found {found}, expected {blob}: --force replaces it")
    return found == blob


class Folder:
    """A folder that has the files; its Quora files are their own reference."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder: give --from the folder that has the files")
        self.folder = folder

    def expected(self, name: str) -> Blob:
        if name in FILES:
            return FILES[name]
        if not (self.folder / name).is_file():
            raise Lacking(f"{self.folder / name}: no such file")
        return blob_of(self.folder / name)

    def get(self, path: Path, blob: Blob) -> None:
        original = self.folder / path.name
        if not original.is_file():
            raise Lacking(f"{original}: no such file")
        with atomic_path(path) as temporary:
            shutil.copyfile(original, temporary)
            found = blob_of(temporary)
            if found != blob:
                raise InputError(f"{original}: found {found}, expected {blob}: get a whole copy")
        if blob not in [*FILES.values(), *SMALL_QUORA.values()]:
            print(f"{original}: its hash is not a known one, taken as it is: {blob}")


class Course:
    """The course's public repository at the pinned commit."""

    def __init__(self, data_dir: Path, force: bool):
        self.data_dir, self.force = data_dir, force

    def expected(self, name: str) -> Blob:
        if name in FILES:
            return FILES[name]
        if name not in self.quora:
            raise Lacking(f"{LIST_URL} does not list it")
        return self.quora[name]

    @cached_property
    def quora(self) -> dict[str, Blob]:
        """What the Quora files should be: a whole smaller split that is there, or the listing."""
        paths = {name: self.data_dir / name for name in SMALL_QUORA}
        present = {name: blob_of(path) for name, path in paths.items() if path.exists()}
        if present == SMALL_QUORA and not self.force:
            return SMALL_QUORA
        try:
            return listing(self.data_dir / LISTING)
        except Unreachable:
            if self.force or len(present) < len(SMALL_QUORA):
                raise
        for name, found in present.items():
            print(f"{paths[name]}: kept unchecked, as there is no network: {found}")
        return present

    def get(self, path: Path, blob: Blob) -> None:
        """Download by way of NAME.part, going on where an interrupted call ended."""
        url, part = f"{RAW_URL}/{path.name}", path.with_name(f"{path.name}.part")
        start = part.stat().st_size if part.exists() else 0
        if start != blob.size:
            append(url, part, start=start if start < blob.size else 0, size=blob.size)
        found = blob_of(part)
        if found != blob:
            part.unlink()
            raise InputError(
                f"{url}: found {found}, expected {blob}: {part.name} is deleted; run it again, and "
                f"if that does not help, something between here and the server changes the file"
            )
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)


def listing(path: Path) -> dict[str, Blob]:
    """The files of the course's data folder at the pinned commit, as GitHub lists them."""
    if path.exists():
        return _blobs(path.read_bytes(), f"{path}: delete it")
    text = read_small(LIST_URL)
    blobs = _blobs(text, LIST_URL)
    with atomic_write(path, "wb") as file:
        file.write(text)
    return blobs


def _blobs(text: bytes, where: str) -> dict[str, Blob]:
    """A listing's files: name, git hash and size of each must be what they should."""
    try:
        entries = json.loads(text)
        blobs = {entry["name"]: Blob(entry["sha"], entry["size"]) for entry in entries}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        found = quoted(text[:60])
        raise InputError(f"{where}: {found} is no listing of files: run it again") from error
    for name, blob in blobs.items():
        is_hash = isinstance(blob.sha, str) and re.fullmatch("[0-9a-f]{40}", blob.sha)
        is_size = type(blob.size) is int and 0 <= blob.size <= LARGEST_FILE
        if not (isinstance(name, str) and is_hash and is_size):
            raise InputError(
                f"{where}: found {quoted([name, blob.sha, blob.size])}, expected a name, a git "
                f"hash and a size from 0 to {LARGEST_FILE:,}: run it again"
            )
    return blobs


@command
def main(argv=None):
    parser = Parser(__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--from", dest="source", type=Path, help="a folder that has the files")
    parser.add_argument("--force", action="store_true", help="replace files that are wrong")
    parser.add_argument("--data_dir", type=Path, default=here, help="default: %(default)s")
    args = parser.parse_args(argv)
    source = Folder(args.source) if args.source else Course(args.data_dir, args.force)
    failed = bring(source, args.data_dir, force=args.force)
    if failed:
        raise InputError(
            f"{args.data_dir}: {len(failed)} of {len(NAMES)} files could not be brought, for the "
            f"reasons above: {', '.join(failed)}"
        )
    print("next: python classifier.py --fine-tune-mode full-model --use_gpu")


if __name__ == "__main__":
    main()
