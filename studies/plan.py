"""The runs that a study consists of, and which of them are done, due, or wait for others.

Each contestant tries its learning rates with the first seed; the rate that did best is kept for
the other seeds.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path

from engine.errors import InputError
from engine.hub import BUNDLED
from studies.entries import Contestant, Study

RANDOM = "random"  # in place of a model: its shape, with weights as before pre-training


@dataclass(frozen=True)
class Run:
    """One run of a contestant. lr None: the flags have it. limit: rows of each file at most.

    found: the figures of the contestant that it comes after.
    """

    study: Study
    contestant: Contestant
    lr: float | None
    seeds: tuple[int, ...]
    limit: int | None = None
    found: dict = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple:
        return self.study.name, self.contestant.name, self.lr, self.seeds

    @property
    def model(self) -> str:
        return self.contestant.model or self.study.model

    @property
    def settings(self) -> dict:
        """What else decides the figures."""
        study, one = self.study, self.contestant
        return {
            "checkpoint": checkpoint_name(study.model if self.model == RANDOM else self.model),
            "limit": self.limit,
            "bf16": study.bf16,
            "kind": one.kind or study.kind,
            "data": study.data,
            "flags": " ".join(filter(None, [study.flags, one.task_flags, one.flags])),
            "model": self.model,
        }

    @property
    def digest(self) -> str:
        return _digest([self.key, self.settings])

    def start_with(self, flags=()) -> str:
        """A name of what the study's checkpoints are trained from, on and how; flags: more."""
        settings = {name: self.settings[name] for name in ("checkpoint", "bf16", "data", "model")}
        return _digest([settings, " ".join([self.study.flags, *flags])])

    def __str__(self) -> str:
        rate = f", lr {self.lr:g}" if self.lr else ""
        seeds = f", seed {'+'.join(map(str, self.seeds))}" if self.seeds else ""
        return f"{self.study.name}: {self.contestant.name}{rate}{seeds}"

    def is_in(self, record: dict) -> bool:
        """Whether a record is of this run; one of before may lack some of the settings."""
        key = record["study"], record["contestant"], record.get("lr"), tuple(record["seeds"])
        before, now = record.get("settings", {}), self.settings
        return key == self.key and all(before.get(name, now[name]) == now[name] for name in now)


def _digest(value) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def checkpoint_name(model: str) -> str:
    """A model's name; of a folder with a hash of its weights."""
    file = BUNDLED.get(model, Path(model)) / "model.safetensors"
    if not file.is_file():
        if model in BUNDLED:
            raise InputError(f"{file}: not there: train it by pretrain.py first")
        return model
    return f"{Path(model).name} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def plan(study: Study, records: list[dict], limit: int | None = None):
    """(done, due, waiting): records by run, runs that can begin, the number of later ones."""
    done, due, waiting = [], [], 0
    for one in study.contestants:
        ready, later = _runs_of(study, one, records, limit)
        waiting += later
        for run in ready:
            found = next((record for record in reversed(records) if run.is_in(record)), None)
            before = _figures(study, one.after, records, limit) if one.after else {}
            if found:
                done.append((run, found))
            elif before is None:
                waiting += 1
            else:
                due.append(replace(run, found=before))
    return done, due, waiting


def _runs_of(study, one: Contestant, records, limit) -> tuple[list[Run], int]:
    first, *others = study.seeds
    lrs = study.lrs if one.lrs is None else one.lrs
    if one.seeds == "none":
        return [Run(study, one, None, (), limit)], 0
    if not lrs:
        chosen = {"all": study.seeds, "first": (first,), "others": tuple(others)}[one.seeds]
        return [
            Run(study, one, None, seeds, limit) for seeds in combinations(chosen, one.combine)
        ], 0
    tried = [Run(study, one, lr, (first,), limit) for lr in lrs]
    lr = best_rate(study, tried, records)
    rest = [] if lr is None else [Run(study, one, lr, (seed,), limit) for seed in others]
    return tried + rest, len(others) - len(rest)


def best_rate(study: Study, tried: list[Run], records) -> float | None:
    """The rate that did best with the first seed; None until all were tried."""
    scores = {}
    for run in tried:
        found = next((record for record in reversed(records) if run.is_in(record)), None)
        if found is None:
            return None
        scores[run.lr] = found["figures"][study.figure]
    return study.best(scores, key=scores.get)


def _figures(study: Study, name: str, records, limit) -> dict | None:
    """The figures of another contestant's first run."""
    runs, _ = _runs_of(study, study.contestant(name), records, limit)
    found = (record["figures"] for record in records for run in runs if run.is_in(record))
    return next(found, None)
