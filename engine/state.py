"""What checkpoints hold of a model and of a run, checked before anything takes it."""

import contextlib
from collections.abc import Iterator
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import torch

from engine.errors import InputError, excerpt, is_number
from engine.sharding import sharded_like
from engine.trees import load_tree

RENAMED = {"stale": "epochs_without_improvement"}  # of the progress in files of earlier versions
ADDED = {"skipped": 0}  # what they lack there


def load_checkpoint(path, task: str) -> dict:
    """The tree of a best or last file; one that another task wrote is refused."""
    tree = load_tree(path)
    if tree.get("task") != task:
        found = excerpt(repr(tree.get("task")))
        raise InputError(f"{path}: a checkpoint of task {found}, expected {task!r}")
    return tree


def load_run(path, task: str, progress_type: type, metric: str) -> dict:
    """The tree of a last file, with its progress as an instance of that dataclass.

    metric: what each record of its history must hold, beside its epoch and its training loss.
    """
    tree = load_checkpoint(path, task)
    expect(tree, {"progress": dict, "random": list}, path)
    values = {RENAMED.get(name, name): value for name, value in (ADDED | tree["progress"]).items()}
    known = get_type_hints(progress_type)
    unlike = sorted(values.keys() ^ known.keys(), key=str)
    unlike += [
        name for name in known.keys() & values.keys() if not _is_a(values[name], known[name])
    ]
    needed = ("epoch", "train_loss", metric)
    for record in values["history"] if not unlike else ():
        unlike += [f"history's {name}" for name in needed if not _has_number(record, name)]
    if not unlike and values["step"] and values["targets"] <= 0:
        unlike = ["targets"]
    if unlike:
        raise InputError(
            f"{path}: the progress of another version of this project: {len(unlike)} fields "
            f"differ, first {excerpt(str(unlike[0]))}: train anew, or use the code that wrote it"
        )
    return tree | {"progress": progress_type(**values)}


def expect(tree: dict, kinds: dict[str, type], path) -> None:
    """Refuse a tree that lacks one of these keys, or holds something else there."""
    for key, kind in kinds.items():
        if not isinstance(tree.get(key), kind):
            found = type(tree[key]).__name__ if key in tree else "nothing"
            raise InputError(
                f"{path}: found {found} under {key!r}, expected a {kind.__name__}: written by "
                f"another version of this project: train anew, or use the code that wrote it"
            )


def _has_number(record, name: str) -> bool:
    return isinstance(record, dict) and is_number(record.get(name))


def _is_a(value, hint) -> bool:
    """Whether a value is of the type that a dataclass declares; an int will do as a float.

    An int counts something: epochs, steps.
    """
    if type(value) is int and not 0 <= value < 2**31:
        return False
    kinds = get_args(hint) if isinstance(hint, UnionType) else [get_origin(hint) or hint]
    if isinstance(value, bool) or float not in kinds:
        return type(value) in kinds
    return isinstance(value, (*kinds, int))


def trainable_state(model) -> dict[str, torch.Tensor]:
    """What training changes: every parameter and buffer but the frozen parameters."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def load_trainable_state(model, state: dict[str, torch.Tensor], where) -> None:
    """The inverse of `trainable_state`; of a sharded model, each worker takes its share."""
    check_state(model, state, where)
    mine = trainable_state(model)
    state = {name: sharded_like(mine[name], tensor) for name, tensor in state.items()}
    model.load_state_dict(state, strict=False)


def check_state(model, state: dict[str, torch.Tensor], where) -> None:
    """Refuse what is not a model's `trainable_state`: names and shapes match, all is finite."""
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
