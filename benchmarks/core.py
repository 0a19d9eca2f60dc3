"""Every job of the course, by every peer and by ours: same weights, same rows, one run.

    python benchmarks/core.py --model_size FOLDER --data_dir data
    python benchmarks/core.py --use_gpu --bf16 --compile --tokenizer FOLDER \
                              --model_size gpt2 gpt2-medium gpt2-large

Each peer has a process of its own, they take turns, and what they did is counted and compared.
Tables give medians, spread, memory and the share of what the machine can do, which is measured in
the same run. Results, with the checkpoint and the hardware named, go to benchmarks/results/ after
each job: an interrupted run goes on where it stopped, and what is there is not run again.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command
from engine.files import ROOT
from engine.parallel import seed_everything

# isort: split

import torch

from benchmarks import limits
from benchmarks.jobs import JOBS, Settings, Workload
from benchmarks.match import PEERS, measure
from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.random_checkpoint import write_random_checkpoint
from benchmarks.report import draw, limit_table, machine_table, memory_table, table
from benchmarks.timing import alone, environment, write_results
from config import SIZES
from engine.devices import device_type, has_bf16_units
from engine.flags import check_range
from engine.parallel import start_worker

CONDITIONS = ("checkpoint", "hardware", "torch")


class Results:
    """The rows so far, on disk after each."""

    def __init__(self, path: Path, checkpoint: str, device: torch.device, *, force: bool):
        self.path, self.device, self.force = path, device, force
        self.results = {"checkpoint": checkpoint, **environment(device), "jobs": []}
        if not path.exists():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        same = all(before.get(key) == self.results[key] for key in CONDITIONS)
        if same and all("settings" in row for row in before["jobs"]):
            self.results = before
        elif not force:
            measured = ", ".join(str(before.get(key)) for key in CONDITIONS)
            raise InputError(
                f"{path}: measured before with {measured}, or by an older program: give another "
                f"--out, or --force to begin anew"
            )

    def has(self, name: str, settings: dict) -> bool:
        rows = self.results["jobs"]
        same = [row for row in rows if (row["name"], row["settings"]) == (name, settings)]
        return bool(same) and not self.force

    def add(self, name: str, settings: dict, row: dict) -> None:
        """Put the row in its place, write the file and draw the picture."""
        facts = environment(self.device)
        if {"starter", "ours"} <= row["seconds"].keys():
            row["ratio"] = row["seconds"]["starter"]["median"] / row["seconds"]["ours"]["median"]
        row = {"name": name, **row, "settings": settings}
        row |= {"commit": facts["commit"], "date": facts["date"]}
        others = [r for r in self.results["jobs"] if r["name"] != name]
        order = list(JOBS)
        jobs = sorted([*others, row], key=lambda r: order.index(r["name"]))
        self.results |= {**facts, "jobs": jobs}
        write_results(self.path, self.results)
        if importlib.util.find_spec("matplotlib"):  # times are measured without it, too
            draw(self.results, self.path.with_suffix(".png"))

    def note(self, part: str, found: dict) -> None:
        """Add to a part of the file that holds no jobs, {name: what was found}."""
        before = self.results.get(part, {})
        facts = environment(self.device)
        found = {
            n: {**row, **{k: facts[k] for k in ("commit", "date")}} for n, row in found.items()
        }
        self.results |= {**facts, part: before | found}
        write_results(self.path, self.results)


def open_results(args, model_size: str) -> Results:
    """The file of a checkpoint's results on this machine."""
    device = start_worker(args.use_gpu).device
    checkpoint = Path(model_size).name
    stem = f"core-gpu-{checkpoint}" if args.use_gpu else "core"
    path = Path(args.out or f"benchmarks/results/{stem}.json")
    return Results(path, checkpoint, device, force=args.force)


class Jobs:
    """The jobs with one checkpoint; what is in the file already is left alone."""

    def __init__(self, args, model_size: str, results: Results, log):
        self.args, self.results, self.log = args, results, log
        self.settings = Settings(
            model_size, args.data_dir, args.use_gpu, args.bf16, args.seed, args.batches
        )

    def run(self, name: str, may_start: Callable[[], bool] = lambda: True) -> bool:
        """One job; False if there was no time for it. may_start: whether there is."""
        job, args = JOBS[name], self.args
        names = [peer for peer in job.peers if peer in args.peers]
        kept = {"batches": self.settings.batches_of(job), "repeats": args.repeats}
        kept |= {"bf16": args.bf16, "seed": args.seed, "peers": names}
        if not names or self.results.has(name, kept):
            self.log(f"{name}: {'in the file already' if names else 'none of these peers does it'}")
            return True
        if not may_start():
            self.log(f"{name}: no time left: the same command goes on here")
            return False
        how = {"repeats": args.repeats, "machine": self.machine, "log": self.log}
        row = measure(job, self.settings, names, **how)
        self.results.add(name, kept, row)
        self.log(table({"jobs": [row]}).splitlines()[-1])
        return True

    @cached_property
    def machine(self) -> dict:
        """The machine's limits, measured before the first job."""
        config = Workload(JOBS["step"], self.settings).config
        found = alone(limits.measure, config, self.args.use_gpu)
        self.results.results["limits"] = found
        self.log(machine_table(found))
        return found


def run_size(args, model_size: str, log) -> Results:
    """All jobs with one checkpoint."""
    results = open_results(args, model_size)
    jobs = Jobs(args, model_size, results, log)
    for name in args.jobs:
        jobs.run(name)
    return results


def random_folder(size: str, tokenizer: str) -> str:
    """A published size with random weights beside a tokenizer, made once."""
    folder = ROOT / "runs" / f"{size}-random"
    if not (folder / "config.json").exists():
        write_random_checkpoint(size, Path(tokenizer), folder)
    return str(folder)


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--model_size", nargs="+", default=["gpt2"], help="folders or names, one after the other"
    )
    parser.add_argument(
        "--tokenizer", help="a tokenizer's folder: published sizes get random weights beside it"
    )
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="of ours, and one more transformers")
    parser.add_argument("--compile", action="store_true", help="one more of ours")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--batches", type=int, help="of each job at most; 0: all; default: a few on a CPU"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--force", action="store_true", help="measure again what is in the file")
    add_commit_flag(parser)
    parser.add_argument("--out", help="default: benchmarks/results/core.json, on GPUs core-gpu-…")
    args = parser.parse_args(argv)
    check_range(args, "batches", 0)
    check_range(args, "repeats", 1)
    if args.out and len(args.model_size) > 1:
        raise InputError(
            f"--out {args.out}: of one --model_size only, {len(args.model_size)} given"
        )
    if args.bf16 and not has_bf16_units(device_type(args.use_gpu)):
        raise InputError("--bf16: this machine has no units for it: leave it out")
    asked = {
        "transformers-bf16": args.bf16,
        "ours-compiled": args.compile,
        "ours-eager": args.use_gpu,
        "ours-float32": args.use_gpu and args.bf16,
    }
    args.peers = [name for name in args.peers if asked.get(name, True)]
    return args


@command
def main():
    args = get_args()
    check_committed(args)
    seed_everything(args.seed)
    for size in args.model_size:
        folder = random_folder(size, args.tokenizer) if args.tokenizer and size in SIZES else size
        results = run_size(args, folder, partial(print, flush=True)).results
        for part in (table, memory_table, limit_table):
            print(part(results), end="\n\n")


if __name__ == "__main__":
    main()
