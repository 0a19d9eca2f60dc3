"""The studies as they are declared in suites/*.toml.

A study is a question about a task: contestants, of which one is the baseline, run within the same
budget.
"""

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from engine.errors import InputError, did_you_mean, some
from engine.files import ROOT
from programs.tasks import TASKS

SUITES = ROOT / "studies" / "suites"
SEEDS = ("all", "first", "others", "none")


@dataclass(frozen=True)
class Contestant:
    """One row of a study.

    flags: of the task's program where that is all that runs, else of the program in question.
    task_flags: more flags of the task. seeds: which of the study's it runs with; combine: so many
    of them go into one run. after: the contestant whose figures it needs. kind, model, lrs: in
    place of the study's.
    """

    name: str
    flags: str = ""
    task_flags: str = ""
    seeds: str = "all"
    combine: int = 1
    after: str = ""
    kind: str = ""
    model: str = ""
    lrs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Study:
    """One question. `{}` in it stands for a contestant's name; worse: it asks who is worse.

    kind: how a run is made (studies/kinds.py). flags: the budget, as flags of the task's program.
    data: the rows (studies/data.py). metric: the figure that decides, by default the task's own;
    maximize: whether more of it is better. hub: it needs weights from the hub, and is run only when
    asked for. steps_per_epoch: where the question is after how many steps a loss is reached, which
    takes the place of `{cost}` in it. reference: who says what of which contestant.
    """

    suite: str
    name: str
    question: str
    task: str
    baseline: str
    contestants: tuple[Contestant, ...]
    kind: str = "fine-tune"
    flags: str = ""
    model: str = "gpt2-mini"
    bf16: bool = False
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    data: str = "full"
    metric: str = ""
    maximize: bool | None = None
    worse: bool = False
    hub: bool = False
    steps_per_epoch: int = 0
    reference: dict = field(default_factory=dict)

    @property
    def figure(self) -> str:
        return self.metric or metric_of(self.task)

    @property
    def more_is_better(self) -> bool:
        return TASKS[self.task].maximize if self.maximize is None else self.maximize

    @property
    def best(self):
        """max or min."""
        return max if self.more_is_better else min

    def contestant(self, name: str) -> Contestant:
        return next(each for each in self.contestants if each.name == name)


def metric_of(task: str) -> str:
    """The figure of a task's runs in metrics.jsonl."""
    return "dev_acc" if TASKS[task].maximize else "dev_perplexity"


# -- declared --------------------------------------------------------------------------------------


def load(names=(), suite: str | None = None, **changes) -> list[Study]:
    """The studies of these names, by default all, in their suites' order; changes: of each."""
    studies = [study for path in sorted(SUITES.glob("*.toml")) for study in read_suite(path)]
    suites = sorted({study.suite for study in studies})
    if suite and suite not in suites:
        raise InputError(f"--suite {suite}: {did_you_mean(suite, suites)}there are {some(suites)}")
    known = [study.name for study in studies]
    for name in names:
        if name not in known:
            raise InputError(f"{name}: {did_you_mean(name, known)}there are {some(known, 40)}")
    chosen = [s for s in studies if (s.name in names if names else suite or not s.hub)]
    return [replace(study, **changes) for study in chosen if suite in (None, study.suite)]


def read_suite(path: Path) -> list[Study]:
    """The studies of one file, whose name is the suite's."""
    with open(path, "rb") as file:
        try:
            return [_study(path, entry) for entry in tomllib.load(file)["study"]]
        except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: expected [[study]] tables in TOML ({error})") from error


def _study(path: Path, entry: dict) -> Study:
    where = f"{path}, study {entry.get('name', '?')}"
    contestants = []
    for name, spec in entry.pop("contestants", {}).items():
        spec = {"flags": spec} if isinstance(spec, str) else spec
        contestants.append(_made(Contestant, f"{where}, {name}", {"name": name, **spec}))
    study = _made(Study, where, {**entry, "suite": path.stem, "contestants": tuple(contestants)})
    if study.task not in TASKS or study.baseline not in [each.name for each in contestants]:
        raise InputError(f"{where}: expected a task of {some(list(TASKS))}, and a baseline of its")
    if wrong := [each.name for each in contestants if each.seeds not in SEEDS]:
        raise InputError(f"{where}, {wrong[0]}: seeds: expected one of {some(list(SEEDS))}")
    return study


def _made(kind: type, where: str, entry: dict):
    known = [each.name for each in fields(kind)]
    for name in entry:
        if name not in known:
            raise InputError(f"{where}: {name}: {did_you_mean(name, known)}no such field")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error
