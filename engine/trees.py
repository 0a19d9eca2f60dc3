"""Trees in safetensors files: nested dicts, lists, numbers and strings as JSON, tensors beside it.

The header's metadata: tree        the JSON, with {"tensor": name} where a tensor stands
                       format      the version of this layout (none: 1, without digests)
                       tree_digest BLAKE2b of the JSON
                       digests     CRC-32 of each tensor in order (format 2: BLAKE2b), as it costs
                                   a fifth, and what is to be noticed is damage, not a forger

Loading a file never runs code; one damaged bit is noticed, wherever it is.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.errors import InputError, excerpt, notice
from engine.files import atomic_path

FORMAT = 3
RENAMED = {"input_quantiser": "input_quantizer"}  # parts of names in files of earlier versions
HEX = 32  # characters of a digest
UNREADABLE = (
    *(SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError, OSError),
    *(RecursionError, OverflowError, MemoryError),
)


def save_tree(path, tree: dict) -> str:
    """Write nested dicts, lists, tuples, numbers, strings and tensors; returns the file's digest.

    The tensors' digests are computed while the file is written, and then put into its header.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_pack(tree, tensors))
    width, digest_of = DIGESTS[FORMAT]
    blank = "-" * (width * len(tensors))
    metadata = {"tree": text, "format": str(FORMAT), "tree_digest": _digest(text.encode())}
    try:
        with atomic_path(path) as temporary, ThreadPoolExecutor(_threads()) as pool:
            found = [pool.submit(digest_of, name, t) for name, t in tensors.items()]
            save_file(tensors, temporary, metadata=metadata | {"digests": blank})
            digests = "".join(future.result() for future in found)
            if digests:
                _replace_in_header(temporary, blank, digests)
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error}): free some space there") from error
    return _digest(f"{metadata['tree_digest']}{digests}".encode())


def load_tree(path, only: str | None = None) -> dict:
    """Read what `save_tree` wrote, tensors onto the CPU; only: no other key of the outermost dict.

    What is not asked for stays on the disk. What is read has its digest checked.
    """
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        pairs = json.loads(metadata["tree"])["dict"]
        digests = _digests(path, metadata)
        tensors = _Tensors(file, digests, _version(metadata))
        tree = {key: _unpack(item, tensors) for key, item in pairs if only in (None, key)}
        tensors.check(path)
    if digests is None and tensors.read:
        notice(f"{path}: written before files held digests: its tensors cannot be checked")
    return tree


def tree_digest(path) -> str:
    """The digest that `save_tree` returned; of a file of the first format, that of its bytes."""
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        _digests(path, metadata)
        if "tree_digest" not in metadata:
            return _digest(Path(path).read_bytes())
        return _digest(f"{metadata['tree_digest']}{metadata['digests']}".encode())


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """BLAKE2b of a CPU tensor's name, type, shape and bytes."""
    digest = hashlib.blake2b(_described(name, tensor), digest_size=HEX // 2)
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def tensor_checksum(name: str, tensor: torch.Tensor) -> str:
    """CRC-32 of the same."""
    return f"{zlib.crc32(_bytes(tensor), zlib.crc32(_described(name, tensor))):08x}"


# by format: characters of a tensor's digest, and how it is computed
DIGESTS = {2: (HEX, tensor_digest), 3: (8, tensor_checksum)}


def _described(name: str, tensor: torch.Tensor) -> bytes:
    return f"{name} {tensor.dtype} {list(tensor.shape)}".encode()


def _bytes(tensor: torch.Tensor) -> memoryview | bytes:
    """A CPU tensor's bytes, not copied if they lie one after another."""
    if not tensor.numel():
        return b""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """One digest of named tensors, wherever they are."""

    def digest(name: str) -> str:
        return tensor_digest(name, tensors[name].detach().cpu())

    with ThreadPoolExecutor(_threads()) as pool:
        return _digest("".join(pool.map(digest, sorted(tensors))).encode())


class _Tensors:
    """The tensors of an open file; each one that is taken is compared with its digest."""

    def __init__(self, file, digests: dict[str, str] | None, version: int):
        self.file, self.digests, self.version = file, digests, version
        self.read: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        # a view would keep Windows from replacing the file
        self.read[name] = self.file.get_tensor(name).clone()
        return self.read[name]

    def check(self, path) -> None:
        if self.digests is None:
            return
        _, digest_of = DIGESTS[self.version]
        with ThreadPoolExecutor(_threads()) as pool:
            found = list(pool.map(digest_of, self.read, self.read.values()))
        damaged = [
            n for n, digest in zip(self.read, found, strict=True) if digest != self.digests[n]
        ]
        if damaged:
            raise InputError(
                f"{path}: {len(damaged)} of {len(found)} tensors are damaged, their digests differ "
                f"from the header's: copy the file again, or delete it and train again"
            )


def _version(metadata: dict) -> int:
    return int(metadata.get("format", 1))


def _digests(path, metadata: dict) -> dict[str, str] | None:
    """Of each tensor of a file; None for a file of the first format."""
    version = _version(metadata)
    if version > FORMAT:
        raise InputError(
            f"{path}: of format {version}, written by a newer version of this project, which reads "
            f"formats up to {FORMAT}: update the code"
        )
    if version == 1:
        return None
    if _digest(metadata["tree"].encode()) != metadata["tree_digest"]:
        raise InputError(f"{path}: its header is damaged: copy the file again, or train again")
    text, (width, _) = metadata["digests"], DIGESTS[version]
    return {f"tensor.{i // width}": text[i : i + width] for i in range(0, len(text), width)}


@contextlib.contextmanager
def _reading(path) -> Iterator[None]:
    """What goes wrong with a file's content while it is read is an InputError."""
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder, expected a file: give its best.safetensors")
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint") from error
    except UNREADABLE as error:
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise InputError(
            f"{path}: no whole checkpoint of this project ({reason}): delete it and train again"
        ) from error


def _replace_in_header(path, old: str, new: str) -> None:
    """Overwrite text of the same length in a safetensors file's header."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        place = file.read(length).index(old.encode())
        file.seek(8 + place)
        file.write(new.encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=HEX // 2).hexdigest()


def _threads() -> int:
    """Hashing leaves Python's lock alone, so threads share it; more than eight gain nothing."""
    return min(8, os.cpu_count() or 1)


def _pack(value, tensors: dict):
    """JSON for a tree; its tensors go into `tensors`, and dicts become lists of [key, value]."""
    if isinstance(value, torch.Tensor):
        name = f"tensor.{len(tensors)}"
        value = value.detach().cpu().contiguous()
        part_of_more = value.untyped_storage().nbytes() != value.nbytes
        tensors[name] = value.clone() if part_of_more else value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, tensors) for item in value]}
    return value


def _unpack(value, tensors: _Tensors):
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_current_name(key): _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _current_name(key):
    """A key of a stored dict as it is called today."""
    for before, now in RENAMED.items() if isinstance(key, str) else ():
        key = key.replace(before, now)
    return key
