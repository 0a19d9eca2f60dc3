"""A run's folder as a report reads it: what it was asked for, and how it went."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from engine.errors import InputError, quoted
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
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        task = config["task"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}/config.json: {error!r}: expected the flags of a run") from error
    if task not in (*TASKS, PRETRAIN):
        known = ", ".join((*TASKS, PRETRAIN))
        raise InputError(f"{path}/config.json: task {quoted(task)}: expected one of {known}")
    resources = path / "resources.json"  # which older runs lack
    taken = json.loads(resources.read_text(encoding="utf-8")) if resources.is_file() else {}
    run = Run(path, config, read_history(path / "metrics.jsonl"), taken)
    if run.metric not in run.history:
        raise InputError(f"{path}/metrics.jsonl: no {run.metric}: expected that of {task}")
    return run


def read_history(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no epoch of this run is finished yet: let it go on first")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append({"epoch": json.loads(line)["epoch"], **json.loads(line)})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: {quoted(line)}: expected the figures of an epoch: train "
                f"anew"
            ) from error
    if not records:
        raise InputError(f"{path}: empty: expected the figures of each epoch: train anew")
    return pd.DataFrame(records)


def read_runs(paths: Iterable) -> list[Run]:
    """Read each run; files beside them, which a pattern such as runs/* finds, are left out."""
    paths = [Path(path) for path in paths]
    folders = [p for p in paths if p.name == BEST or not p.is_file()]
    runs = [read_run(path) for path in folders or paths]
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
