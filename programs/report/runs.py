"""A run's folder as a report reads it: what it was asked for, and how it went."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from engine.errors import InputError, is_number, notice, quoted
from programs.tasks import TASKS

PRETRAIN, BEST = "pretrain", "best.safetensors"
NOT_FLAGS = {"task", "commit", "command", "gpt_config", "seed", "runs_dir", "resume"}
NOT_METHOD = {"use_gpu", "save_minutes", "checkpoint", "json", "quiet"}  # the numbers are alike


@dataclass(frozen=True)
class Run:
    """config, resources: its JSON files; history: a row an epoch, as metrics.jsonl has it."""

    path: Path
    config: dict
    history: pd.DataFrame
    resources: dict

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def best_file(self) -> Path:
        return self.path / BEST

    @property
    def metric(self) -> str:
        """The figure that chose the best epoch."""
        return "val_loss" if self.task == PRETRAIN else TASKS[self.task].metric

    @property
    def maximize(self) -> bool:
        return self.task != PRETRAIN and TASKS[self.task].maximize

    @property
    def best(self) -> pd.Series:
        """The row of the best epoch."""
        column = self.history[self.metric]
        return self.history.loc[column.idxmax() if self.maximize else column.idxmin()]

    @property
    def method(self) -> tuple:
        """What runs that differ in their seed alone have in common."""
        return (self.task, *sorted(f"{k}={v}" for k, v in self.config.items() if _decides(k)))


def _decides(key: str) -> bool:
    return key not in NOT_FLAGS | NOT_METHOD and not key.endswith("_out")


class Unfinished(InputError):
    """A run without a finished epoch."""


def read_run(path) -> Run:
    """Read a run's folder; an InputError says what is missing or broken."""
    path = Path(path)
    if path.name == BEST:
        path = path.parent
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path}: no config.json: expected the folder of a run, such as runs/sst-…: train one "
            f"first"
        )
    config = _read_object(path / "config.json", "the flags of a run: train anew")
    task = config.get("task")
    if task not in (*TASKS, PRETRAIN):
        known = ", ".join((*TASKS, PRETRAIN))
        raise InputError(f"{path}/config.json: task {quoted(task)}: expected one of {known}")
    resources = path / "resources.json"  # which older runs lack
    expected = "what training took of the machine: delete it"
    taken = _read_object(resources, expected) if resources.is_file() else {}
    if not is_number(taken.get("peak_mb", 0)):
        raise InputError(f"{resources}: peak_mb {quoted(taken['peak_mb'])}: expected {expected}")
    run = Run(path, config, pd.DataFrame(), taken)
    return replace(run, history=read_history(path / "metrics.jsonl", run.metric))


def read_history(path: Path, metric: str) -> pd.DataFrame:
    """The figures of each epoch, among them this one."""
    if not path.is_file():
        raise Unfinished(f"{path}: no epoch of this run is finished yet: let it go on first")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        records.append(_object(line))
        if found := _wrong(line, records[-1], metric):
            raise InputError(
                f"{path}, line {number}: {found}: expected the figures of an epoch: train anew"
            )
    if not records:
        raise InputError(f"{path}: empty: expected the figures of each epoch: train anew")
    return pd.DataFrame(records)


def _wrong(line: bytes, record: dict | None, metric: str) -> str:
    """What a line holds that is no figure of an epoch; only the metric needs to be finite."""
    if record is None:
        return quoted(line.decode("utf-8", "backslashreplace"))
    for name in ("epoch", metric, *record):
        value = record.get(name)
        if not is_number(value) and (name in ("epoch", metric) or type(value) is not float):
            return f"{name} {quoted(value)}" if name in record else f"no {name}"
    return ""


def _read_object(path: Path, expected: str) -> dict:
    """A JSON file that holds an object."""
    data = path.read_bytes()
    found = _object(data)
    if found is None:
        text = quoted(data.decode("utf-8", "backslashreplace"))
        raise InputError(f"{path}: {text}: expected {expected}")
    return found


def _object(data: bytes) -> dict | None:
    """The JSON object in UTF-8, or None if it is none."""
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_runs(paths: Iterable) -> list[Run]:
    """Read each run; files beside them, which a pattern such as runs/* finds, are left out.

    Runs without a finished epoch are left out, too, if there are others.
    """
    paths = [Path(path) for path in paths]
    folders = [p for p in paths if p.name == BEST or not p.is_file()]
    runs, unfinished = [], []
    for path in folders or paths:
        try:
            runs.append(read_run(path))
        except Unfinished as error:
            unfinished.append(error)
    if not runs:
        raise unfinished[0]
    for error in unfinished:
        notice(f"left out: {error}")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise InputError("a run is given twice: give each one once")
    return runs


def groups_of(runs: list[Run]) -> list[list[Run]]:
    """Runs of one task and method, by what differs: those of a group differ in their seed alone."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return list(groups.values())


def differences(groups: list[list[Run]]) -> list[str]:
    """For each group, the flags that others of its task do not have alike, as a name."""
    names = []
    for group in groups:
        own = group[0].config
        others = [other[0].config for other in groups if other[0].task == group[0].task]
        keys = [k for k in own if _decides(k) and any(o.get(k) != own[k] for o in others)]
        shown = [f"{key} {_shown(own[key])}" for key in keys]
        names.append(", ".join(shown) or group[0].path.name)
    return names


def _shown(value) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
