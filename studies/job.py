"""One run's work: its folder, the programs that it starts, and what they took."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from engine.children import start_child
from engine.files import ROOT
from programs.tasks import TASKS
from studies.plan import RANDOM, Run

SCHEDULE = ["--schedule", "linear", "--warmup", "0.1", "--clip", "1"]


class RunFailed(Exception):
    """A program of a run ended with an error."""


@dataclass(frozen=True)
class Place:
    """Where runs work: the prepared rows and the checkpoints that runs share, and how.

    Its children end with this process at the latest, or at `stop`.
    """

    root: Path
    use_gpu: bool = False
    jobs: int = 1
    children: set = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self.stopped.set()
        for child in list(self.children):
            child.kill()

    @contextlib.contextmanager
    def watching(self, child: subprocess.Popen) -> Iterator[None]:
        """Let a child be among those that `stop` ends."""
        self.children.add(child)
        if self.stopped.is_set():
            child.kill()
        try:
            yield
        finally:
            self.children.discard(child)


class Job:
    """A run at work in a folder of its own; what its programs took is its seconds and its peak."""

    def __init__(self, run: Run, place: Place, folder: Path):
        self.run, self.place, self.folder = run, place, folder
        self.commands: list[str] = []
        self.seconds, self.peak_mb = 0.0, None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    @property
    def task(self) -> str:
        return self.run.study.task

    @property
    def seed(self) -> int:
        return self.run.seeds[0]

    @property
    def task_flags(self) -> list[str]:
        return self.run.contestant.task_flags.split()

    @property
    def data(self) -> Path:
        return self.rows(self.run.study.data)

    def rows(self, name: str) -> Path:
        """The folder of prepared rows of this name (studies/data.py)."""
        return self.place.root / "data" / name

    @property
    def precision(self) -> list[str]:
        return ["--bf16"] * self.run.study.bf16

    @property
    def gpu(self) -> list[str]:
        return ["--use_gpu"] * self.place.use_gpu

    def start(self, *words) -> None:
        """Run a program on its share of the cores."""
        words = [_relative(word) for word in words]
        self.commands.append(shlex.join(["python", *words]))
        if self.place.stopped.is_set():
            raise RunFailed("stopped")
        report, log = self.folder / "measured.json", self.folder / "log.txt"
        report.unlink(missing_ok=True)
        share = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // self.place.jobs, 1))}
        with open(log, "a", encoding="utf-8") as out:
            argv = [ROOT / "studies" / "measured.py", report, *words]
            options = {"cwd": ROOT, "env": os.environ | share, "start_new_session": True}
            child = start_child(argv, stdout=out, stderr=subprocess.STDOUT, **options)
            with self.place.watching(child):
                code = child.wait()
        if code:
            raise RunFailed(f"exit code {code}: {_last_line(log)} ({log})")
        measured = json.loads(report.read_text(encoding="utf-8"))
        self.seconds += measured["seconds"]
        if measured["peak_mb"] is not None:
            self.peak_mb = max(self.peak_mb or 0.0, measured["peak_mb"])

    def program(self, name: str, *words) -> None:
        """Run one of programs/."""
        self.start("-m", f"programs.{name}", *words)

    def model_flags(self) -> list:
        """The model to start from; random weights are drawn by the run's seed."""
        if self.run.model != RANDOM:
            return ["--model_size", self.run.model]
        folder, model = self.folder / "random", self.run.study.model
        words = ["--model_size", model, "--seed", self.seed, "--out", folder]
        self.start("-m", "studies.baselines", "random-weights", *words)
        return ["--model_size", folder]

    def train(self, *flags, data: Path | None = None, through=()) -> list[dict]:
        """Run the task's program within the study's budget; the lines of its metrics.jsonl.

        through: another program's words, which the task's come after.
        """
        task, budget = TASKS[self.task], self.run.study.flags.split()
        argv = [*task.command, *SCHEDULE, *budget, *flags, *self.model_flags(), "--seed", self.seed]
        argv += ["--lr", self.run.lr] if self.run.lr else []
        argv += ["--data_dir", data or self.data, "--runs_dir", self.folder / "run"]
        for flag in task.output_flags:  # predictions stay beside the run, not in predictions/
            argv += [f"--{flag}", self.folder / flag]
        self.start(*through, *argv, *self.precision, *self.gpu)
        [path] = (self.folder / "run").glob("*/metrics.jsonl")
        return lines_of(path)

    def checkpoint(self, seed: int, *flags) -> Path:
        """The task's best.safetensors of this seed, trained now if no run needed it before.

        flags: beside the study's. Its commands are the run's, too; its seconds are not.
        """
        name = f"{self.task}-{self.run.start_with(flags)}-{seed}"
        place = self.place.root / "checkpoints" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.is_dir():
                unfinished = place.with_suffix(".unfinished")
                one = Job(replace(self.run, seeds=(seed,)), self.place, unfinished)
                one.train(*flags)
                for path in unfinished.glob("run/*/last.safetensors"):
                    path.unlink()
                text = json.dumps(one.commands)
                (unfinished / "commands.json").write_text(text, encoding="utf-8")
                unfinished.rename(place)
        self.commands += json.loads((place / "commands.json").read_text(encoding="utf-8"))
        [path] = place.glob("run/*/best.safetensors")
        return path


def lines_of(path: Path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _relative(word) -> str:
    """A path below the project as it is from there, so that a command is the same everywhere."""
    inside = isinstance(word, Path) and word.is_relative_to(ROOT)
    return str(word.relative_to(ROOT) if inside else word)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return said.removeprefix("error: ")
