"""What is done of a long work, kept in one file until all is: programs share it for `--resume`.

    {"work": {"model": "5c1f0a…", "seed": 11711, "prompts": "09be7d…"}}
    {"part": "beam, dev", "start": 0, "made": ["From fairest creatures …", "…"]}

A work is made in parts, each kept as soon as it is whole; the first line says of what. A part must
follow from that line and from where it starts, draws by a seed of its own, and from no other part:
then a resumed run ends exactly where an uninterrupted one does.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from engine.errors import InputError
from engine.files import atomic_write, check_writable


class Unfinished:
    """The parts of a work so far. path: None keeps nothing; work: what decides all parts, by name.

    resume: go on with the parts of the file, which must be of this very work. Without it, a file
    that an earlier run left stays until there is something to put in its place.
    """

    def __init__(self, path=None, work: dict | None = None, *, resume: bool = False):
        self.path, self.work = path and Path(path), json.loads(json.dumps(work))
        self.parts: dict[tuple[str, int], list] = {}
        if path:
            check_writable(path)
        if resume:
            self.read()

    def __len__(self):
        """How many things are there, over all parts."""
        return sum(map(len, self.parts.values()))

    def made(self, name: str, items: list, *, size: int, make: Callable[[list, int], list]) -> list:
        """What `make(some, start)` gives of the items, so many at a time, all in one list.

        `start` is the number of the first of them. Of parts that are kept nothing is made again.
        """
        made = []
        for start in tqdm(range(0, len(items), size), name, leave=False, disable=None):
            if (name, start) not in self.parts:
                self.parts[name, start] = make(items[start : start + size], start)
                self.save()
            made += self.parts[name, start]
        return made

    def save(self) -> None:
        if self.path:
            lines = [{"work": self.work}]
            lines += [{"part": n, "start": s, "made": made} for (n, s), made in self.parts.items()]
            with atomic_write(self.path) as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def read(self) -> None:
        if not self.path.is_file():
            raise InputError(
                f"--resume: no {self.path}: give the flags of the run to go on with, or leave "
                f"--resume out"
            )
        try:
            first, *lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
            begun = dict(first["work"])
            parts = {(line["part"], int(line["start"])): list(line["made"]) for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--resume: {self.path}: no file of unfinished work ({error!r}): leave --resume out"
            ) from error
        unlike = [name for name in {**self.work, **begun} if begun.get(name) != self.work.get(name)]
        if unlike:
            raise InputError(
                f"--resume: {self.path}: of a run that differs from this one in "
                f"{', '.join(unlike)}: give its flags and files, or leave --resume out"
            )
        self.parts = parts

    def remove(self) -> None:
        """The work is done."""
        if self.path:
            self.path.unlink(missing_ok=True)


def digest(*values) -> str:
    """A hash by which texts, and what else shows itself whole, are known again."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def weights_digest(model) -> str:
    """A hash of all that a model has learnt, by which it is known again."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
