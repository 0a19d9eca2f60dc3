"""Runs on disk: `runs/<task>-<name>/` with config.json, best.* and last.safetensors, metrics.jsonl.

Their safetensors files are trees (engine/trees.py), and each appears whole or not at all.
"""

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import torch

from engine.curves import plot_curves
from engine.errors import InputError, excerpt
from engine.files import ROOT, atomic_write, check_writable, remove_leftovers
from engine.settings import Settings
from engine.trees import load_tree, save_tree

UNNAMED = {
    "use_gpu",
    "resume",
    "runs_dir",
    "save_minutes",
    "checkpoint",
    "out",
    "dtype",
}  # and *_out
CODE = (".", ":(exclude)*.md", ":(exclude)*/results/*")  # not pages, nor what was measured
CHANGES, UNKNOWN = "+changes", "unknown"  # of a commit


class RunFolder:
    """The folder of one run; a worker that is not the main one reads and never writes."""

    def __init__(self, root, task: str, name: str, settings: Settings, writes: bool = True):
        """The folder's name carries a hash of the changed settings that change the result."""
        changed = settings.changed().items()
        decisive = {key: value for key, value in changed if not _unnamed(key)}
        text = json.dumps(decisive, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.path = Path(root) / f"{task}-{name}-{digest}"
        self.task, self.settings, self.writes = task, settings, writes

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    def start(self, resume: bool) -> None:
        """Begin anew, or make sure that there is something to go on with.

        What an earlier run with the same settings left stays until this one has something better.
        """
        if resume and not self.last.exists():
            others = sorted(path.name for path in self.path.parent.glob(f"{self.task}-*"))
            raise InputError(
                f"--resume: no {self.last}: give the flags of the run to go on with, or leave "
                f"--resume out; runs here: {', '.join(others) or 'none'}"
            )
        if not self.writes:
            return
        check_writable(self.last)
        remove_leftovers(self.path)
        if not resume:
            with atomic_write(self.path / "config.json") as file:
                config = {"task": self.task, **vars(self.settings), "commit": current_commit()}
                json.dump(config, file, indent=2, default=str)

    def save_best(self, model, metrics: dict) -> None:
        if self.writes:
            tree = {
                "task": self.task,
                "settings": vars(self.settings),
                "metrics": metrics,
                "model": trainable_state(model),
            }
            save_tree(self.best, tree)

    def save_last(self, tree: dict) -> None:
        if self.writes:
            save_tree(self.last, {"task": self.task, **tree})

    def write_metrics(self, history: list[dict]) -> None:
        """One JSON line an epoch, in metrics.jsonl."""
        if self.writes:
            with atomic_write(self.path / "metrics.jsonl") as file:
                file.writelines(json.dumps(record) + "\n" for record in history)

    def draw_curves(self, history: list[dict], metric: str) -> None:
        if self.writes:
            plot_curves(history, self.path / "curves.png", metric)


def _unnamed(key: str) -> bool:
    return key in UNNAMED or key.endswith("_out")


def load_model(path, task: str, build_model):
    """(model, settings) of a best file, the model built by the task's `build_model` from these.

    A frozen backbone is not in the file: it is taken from the checkpoint that `model_size` names.
    """
    tree = load_checkpoint(path, task)
    if "settings" not in tree:
        raise InputError(
            f"{path}: the state of a run, not its best epoch: give its best.safetensors"
        )
    expect(tree, {"settings": dict, "model": dict}, path)
    settings = Settings(tree["settings"])
    has_backbone = "gpt.word_embedding.weight" in tree["model"]
    with named_as_of_another_version(path, "settings"):
        model = build_model(settings, pretrained=not has_backbone)
    load_trainable_state(model, tree["model"], path)
    return model, settings


def load_checkpoint(path, task: str) -> dict:
    """The tree of a best or last file; one that another task wrote is refused."""
    tree = load_tree(path)
    if tree.get("task") != task:
        found = excerpt(repr(tree.get("task")))
        raise InputError(f"{path}: a checkpoint of task {found}, expected {task!r}")
    return tree


def load_run(path, task: str, progress_type: type) -> dict:
    """The tree of a last file, with its progress as an instance of that dataclass."""
    tree = load_checkpoint(path, task)
    expect(tree, {"progress": dict, "data": str, "random": list}, path)
    values, known = tree["progress"], get_type_hints(progress_type)
    unlike = sorted(values.keys() ^ known.keys(), key=str)
    unlike += [
        name for name in known.keys() & values.keys() if not _is_a(values[name], known[name])
    ]
    if unlike:
        raise InputError(
            f"{path}: the progress of another version of this project: {len(unlike)} fields "
            f"differ, first {excerpt(str(unlike[0]))}: train anew, or use the code that wrote it"
        )
    tree["progress"] = progress_type(**values)
    if not tree["progress"].finished:
        expect(tree, {"model": dict, "optimizer": dict}, path)
    return tree


def expect(tree: dict, kinds: dict[str, type], path) -> None:
    """Refuse a tree that lacks one of these keys, or holds something else there."""
    for key, kind in kinds.items():
        if not isinstance(tree.get(key), kind):
            found = type(tree[key]).__name__ if key in tree else "nothing"
            raise InputError(
                f"{path}: found {found} under {key!r}, expected a {kind.__name__}: written by "
                f"another version of this project: train anew, or use the code that wrote it"
            )


def _is_a(value, hint) -> bool:
    """Whether a value is of the type that a dataclass declares; an int will do as a float."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else [get_origin(hint) or hint]
    if isinstance(value, bool) or float not in kinds:
        return type(value) in kinds
    return isinstance(value, (*kinds, int))


def trainable_state(model) -> dict[str, torch.Tensor]:
    """What training changes: every parameter and buffer but the frozen parameters."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def load_trainable_state(model, state: dict[str, torch.Tensor], where) -> None:
    """The inverse of `trainable_state`; names and shapes must match, and all be finite."""
    expected = trainable_state(model)
    unlike = sorted(expected.keys() ^ state.keys(), key=str)
    for name in sorted(expected.keys() & state.keys()):
        if getattr(state[name], "shape", None) != expected[name].shape:
            unlike.append(name)
    if unlike:
        raise InputError(
            f"{where}: a checkpoint of another model: {len(unlike)} tensors differ, first "
            f"{excerpt(str(unlike[0]))}: give the --model_size and flags that it was trained with"
        )
    names = [name for name, _ in model.named_parameters() if name in state]
    broken = [name for name in names if not bool(state[name].isfinite().all())]
    if broken:
        raise InputError(
            f"{where}: {len(broken)} of {len(names)} tensors hold NaN or infinity, first "
            f"{broken[0]}: a run that diverged, or a damaged file: train anew"
        )
    model.load_state_dict(state, strict=False)


@contextlib.contextmanager
def named_as_of_another_version(path, what: str) -> Iterator[None]:
    """Content that today's code cannot take is an InputError, which names the file."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise InputError(
            f"{path}: {what} of another version of this project, or damaged "
            f"({excerpt(f'{type(error).__name__}: {error}')}): train anew"
        ) from error


def current_commit() -> str:
    """The commit of the code, with "+changes" if tracked code differs; "unknown" without git."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("rev-parse", "HEAD") + (CHANGES if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
