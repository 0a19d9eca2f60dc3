"""Studies: many fine-tuning runs, started from the command line, their figures in one file.

A run's figure is the dev score of its best epoch (of sonnets the dev perplexity). Each contestant
tries the same learning rates with the first seed and keeps the better one for the others. `--jobs`
runs go on at a time, each with its share of the cores. The results file keeps every run: what is in
it is not run again, so that an interrupted study continues where it stopped.
"""

import hashlib
import json
import os
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.timing import environment, write_results
from engine.children import start_child
from engine.devices import device_of
from engine.errors import InputError
from engine.files import ROOT
from engine.hub import BUNDLED
from programs.tasks import TASKS

SCHEDULE = ["--schedule", "linear", "--warmup", "0.1", "--clip", "1"]


def mean_and_spread(values: list[float], spec: str, sign: str = "") -> str:
    """Mean ± standard deviation, both in a format such as ".3f"; sign: the mean's, "+" or ""."""
    spread = f" ± {statistics.stdev(values):{spec}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}{spec}}{spread}"


RUNS = {  # the tasks' flags that give each run a few minutes on two cores
    "sst": "--fine-tune-mode full-model --batch_size 32 --epochs 4",
    "cfimdb": "--fine-tune-mode full-model --epochs 2",
    "paraphrase": "--batch_size 32 --epochs 1",
    "sonnet": "--epochs 12 --patience 0 --max_new_tokens 1",
}


def argv_of(name: str) -> list[str]:
    """The program of a task's runs, and its flags."""
    return [*TASKS[name].command, *RUNS[name].split()]


def metric_of(name: str) -> str:
    """The figure of a task's runs in metrics.jsonl."""
    return "dev_acc" if TASKS[name].maximize else "dev_perplexity"


def best_of(name: str) -> Callable:
    """max or min."""
    return max if TASKS[name].maximize else min


def shown(name: str, values: list[float]) -> str:
    """The figures of several runs of a task."""
    return mean_and_spread(values, ".3f" if TASKS[name].maximize else ".1f")


def fine_tune(args, name: str, flags_of: Callable, *, seed: int, lr: float) -> float:
    """The best dev figure of one run of a task's program.

    flags_of(seed, folder): the contestant's own flags; what it puts into the folder goes later.
    """
    with tempfile.TemporaryDirectory(prefix="bench-study-") as folder:
        flags = flags_of(seed, folder) + (["--limit", str(args.limit)] if args.limit else [])
        run = train(args, name, flags, folder, seed=seed, lr=lr)
        return best_of(name)(record[metric_of(name)] for record in history(run))


def train(args, name: str, flags: list[str], folder, *, seed: int, lr: float) -> Path:
    """Run a task's program; the folder of its run, below `folder`."""
    argv = [*argv_of(name), *flags, "--data_dir", args.data_dir]
    argv += ["--seed", str(seed), "--lr", str(lr), "--runs_dir", str(folder), *SCHEDULE]
    argv += ["--bf16"] * args.bf16 + ["--use_gpu"] * args.use_gpu
    start(args, argv + _output_flags(name, folder))
    [path] = Path(folder).glob("*/metrics.jsonl")
    return path.parent


def start(args, argv: list) -> None:
    """Run a Python program on its share of the cores; it ends with this process at the latest."""
    share = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // args.jobs, 1))}
    env = os.environ | share
    code = start_child(argv, cwd=ROOT, stdout=subprocess.DEVNULL, env=env).wait()
    if code:
        raise subprocess.CalledProcessError(code, argv)


def history(run: Path) -> list[dict]:
    """What a run's metrics.jsonl says, an epoch each."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _output_flags(name: str, folder: str) -> list[str]:
    """Predictions of a study go beside its checkpoints, not into predictions/."""
    flags = TASKS[name].output_flags
    return [word for flag in flags for word in (f"--{flag}", f"{folder}/{flag}")]


class Study:
    """The figures so far, on disk after each run."""

    def __init__(self, args):
        self.args, self.path, self.lock = args, Path(args.out), threading.Lock()
        settings = {"limit": args.limit, "bf16": args.bf16, "checkpoint": checkpoint()}
        self.results = {**settings, "runs": {}}
        if self.path.exists():
            self.results |= json.loads(self.path.read_text(encoding="utf-8"))
            unlike = [name for name in settings if self.results.get(name) != settings[name]]
            if unlike:
                raise InputError(
                    f"{self.path}: made with another {', '.join(unlike)}: give another --out"
                )

    def figure(self, key: str, work: Callable[[], float]) -> float:
        """The figure of a run, done now if it was not before."""
        if key not in self.results["runs"]:
            self._keep({key: work()})
        print(f"{key}: {self.results['runs'][key]:.4f}", flush=True)
        return self.results["runs"][key]

    def figures(self, key: str, work: Callable[[], dict]) -> dict[str, float]:
        """Those of one run, by name, each kept as "KEY, NAME"."""
        start, runs = f"{key}, ", self.results["runs"].copy()
        figures = {k.removeprefix(start): v for k, v in runs.items() if k.startswith(start)}
        if not figures:
            figures = work()
            self._keep({start + name: value for name, value in figures.items()})
        text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        print(f"{key}: {text}", flush=True)
        return figures

    def _keep(self, figures: dict[str, float]) -> None:
        with self.lock:
            self.results["runs"] |= figures
            self.results |= environment(device_of(self.args.use_gpu))
            self.results["jobs"] = self.args.jobs
            write_results(self.path, self.results)

    def contest(self, name: str, contestant: str, flags_of: Callable, lrs=()) -> None:
        """All rates with the first seed, the better one with the others; --lrs goes before lrs."""

        def run(seed: int, lr: float) -> float:
            key = f"{name}, {contestant}, lr {lr:g}, seed {seed}"
            return self.figure(key, lambda: fine_tune(self.args, name, flags_of, seed=seed, lr=lr))

        first, *others = self.args.seeds
        tried = {lr: run(first, lr) for lr in self.args.lrs or lrs}
        lr = best_of(name)(tried, key=tried.get)
        for seed in others:
            run(seed, lr)

    def side_by_side(self, calls: Iterable[Callable[[], None]]) -> None:
        """All calls, --jobs of them at a time; where one fails, those that wait are left out."""
        with ThreadPoolExecutor(self.args.jobs) as pool:
            try:
                for part in as_completed([pool.submit(call) for call in calls]):
                    part.result()
            finally:
                pool.shutdown(cancel_futures=True)


def scores(runs: dict[str, float], name: str, contestant: str) -> tuple[str, list[float]]:
    """The learning rate that was kept, and its figures, one a seed; ("", []) if nothing was run."""
    by_rate: dict[str, list[float]] = {}
    for key, value in runs.items():
        task, label, *rest = key.split(", ")
        if (task, label) == (name, contestant):
            by_rate.setdefault(rest[0] if rest else "", []).append(value)
    if not by_rate:
        return "", []
    rate = best_of(name)(by_rate, key=lambda rate: by_rate[rate][0])
    return rate, by_rate[rate]


def checkpoint() -> str:
    """A name of the bundled checkpoint, with a hash of its weights."""
    file = BUNDLED["gpt2-mini"] / "model.safetensors"
    if not file.is_file():
        raise InputError(f"{file}: not there: train it by pretrain.py first")
    return f"gpt2-mini {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def add_study_arguments(parser, *, out: str, tasks=(), lrs=()) -> None:
    """The flags that all studies share; without tasks there is no choice of these, nor of rates."""
    parser.add_argument("--data_dir", default="data")
    if tasks:
        parser.add_argument("--tasks", nargs="+", choices=RUNS, default=tasks)
        parser.add_argument("--lrs", nargs="+", type=float, default=lrs, help="learning rates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--limit", type=int, help="rows of each file at most")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    add_commit_flag(parser)
    parser.add_argument("--out", default=out)


def parse(parser):
    args = parser.parse_args()
    check_committed(args)
    args.data_dir = str(Path(args.data_dir).resolve())
    return args
