"""What a command has left in its folder, and where that differs from what it should be."""

import json
import re
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from engine.best_file import named_best
from engine.errors import InputError
from engine.trees import load_tree

# Figures of time and memory, the digest of a file with some (`named_best` looks at it), the code's
# state, and whether the last start was by --resume.
CHANGING = {"seconds", "tokens_per_second", "peak_mb", "digest", "commit", "resume"}
UNCOMPARED = {".png", ".db", ".lock"}  # their presence is, and of a database its trials
# In a search: folders named by a process, numbers of trials, and hashes of flags that name these.
OF_AN_ATTEMPT = re.compile(r"(?<=trial-)\d+|.*/data-[^/\"]+-\d+|(?<=-)[0-9a-f]{8}(?=/|$)")


def differences(expected: Path, found: Path) -> list[str]:
    """A line for each file that one folder has alone, or that differs."""
    here, there = _files(found), _files(expected)
    lines = [f"{name}: left over" for name in sorted(here.keys() - there.keys())]
    lines += [f"{name}: missing" for name in sorted(there.keys() - here.keys())]
    for name in sorted(here.keys() & there.keys()):
        try:
            if _content(here[name]) != _content(there[name]):
                lines.append(f"{name}: differs")
        except InputError as error:
            lines.append(str(error))
    return lines + broken_pairs(found)


def broken_pairs(folder: Path) -> list[str]:
    """Last files whose best is another one."""
    lines = []
    for last in sorted(folder.rglob("last.safetensors")):
        try:
            named_best(last, last.with_name("best.safetensors"))
        except InputError as error:
            lines.append(str(error))
    return lines


def held_locks(folder: Path) -> list[str]:
    """Locks in a folder, as lines, that a process which has ended still seems to hold."""
    lines = []
    for path in sorted(folder.rglob(".lock")):
        try:
            FileLock(path).acquire(timeout=0).lock.release()
        except Timeout:
            lines.append(f"{path.relative_to(folder)}: still held")
    return lines


def _files(folder: Path) -> dict[str, Path]:
    """Name -> path of all that is in a folder, links left out; trials are counted anew."""
    trials = sorted({int(p.name[6:]) for p in folder.rglob("trial-*") if p.is_dir()})
    places = {f"trial-{number}": f"trial {i}" for i, number in enumerate(trials)}
    found = {}
    for path in folder.rglob("*"):
        if not path.is_symlink():
            parts = [places.get(part, part) for part in path.relative_to(folder).parts]
            of_a_trial = any(part.startswith("trial ") for part in parts)
            name = "/".join(parts)
            found[OF_AN_ATTEMPT.sub("", name) if of_a_trial else name] = path
    return found


def _content(path: Path):
    """What decides whether two files are the same."""
    if path.is_dir() or path.suffix in UNCOMPARED - {".db"} or path.name == "log.txt":
        return None
    if path.suffix == ".db":
        return _trials(path)
    if path.suffix == ".safetensors" and _is_tree(path):
        return _timeless(load_tree(path))
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = [content] if path.suffix == ".json" else content.splitlines()
        return [_timeless(json.loads(line)) for line in lines]
    return content


def _is_tree(path: Path) -> bool:
    """Whether this project wrote the file, and not transformers."""
    try:
        with safe_open(path, framework="pt") as file:
            return "tree" in (file.metadata() or {})
    except SafetensorError as error:
        raise InputError(f"{path}: {error}") from error


def _timeless(value):
    """A tree without what every run has of its own, its tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return [
            (_timeless(key), _timeless(item)) for key, item in value.items() if key not in CHANGING
        ]
    if isinstance(value, (list, tuple)):
        return [_timeless(item) for item in value]
    return OF_AN_ATTEMPT.sub("", value) if isinstance(value, str) else value


def _trials(path: Path) -> list:
    """Values and figures of the trials of a search that came to an end."""
    import optuna

    from programs.search.study import ended

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    [name] = optuna.get_all_study_names(storage := f"sqlite:///{path}")
    study = optuna.load_study(study_name=name, storage=storage)
    return [(trial.params, trial.value, trial.state.name) for trial in ended(study)]
