"""The jobs of `core.py` on one GPU in a few minutes, the most important ones first.

    python benchmarks/gpu.py --minutes 8

First `pytest -m gpu`. Then the starter, transformers and this project, with recorded steps, eager
and compiled, in bfloat16 where they have it, and ours in float32, too; of each one's steps the time
of host and device, launches, and the seconds of recording. Between them the course's own training
command, all epochs, in bfloat16 and as it is. All flags of core.py serve, too; by default the
weights are random ones of gpt2's size and the rows those of data/, or of data/sample.

Each part is in the results file when it is done, and none begins that would not end in time: the
same command again goes on with the next one.
"""

import importlib.util
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command
from engine.files import ROOT
from engine.parallel import seed_everything, start_worker

# isort: split

from benchmarks import core, whole_commands
from benchmarks.provenance import check_committed
from benchmarks.report import memory_table, step_table, table
from config import SIZES
from engine.provenance import current_commit
from engine.records import data_file

ORDER = ("sst-8", "decode", "paraphrase-64", "cfimdb-8", "sonnets-8", "evaluate", "sst-64", "head")
ORDER = (*ORDER, "step", "start")
BEFORE_TRAININGS = 3  # jobs that are more important than the whole commands
DEFAULTS = ["--use_gpu", "--bf16", "--compile", "--batches", "24", "--repeats", "2"]
DEFAULTS += ["--jobs", *ORDER, "--tokenizer", str(ROOT / "pretrained" / "gpt2-mini")]
DEFAULTS += ["--out", "benchmarks/results/gpu.json"]
EPILOG = """All other flags are core.py's: benchmarks/core.py --help. Optional: pytest (else no
tests), pytest-xdist (else tests in one process), accelerate (else transformers does not train),
matplotlib (else no picture), triton and a C++ compiler (else nothing is compiled)."""
TESTS_SHARE = 0.5  # of the minutes, at most
SPARE = 1.2  # times its target: what must be left for a whole command to begin


class Clock:
    """Says whether one more job, as long as the longest so far, ends in time."""

    def __init__(self, minutes: float, now=time.monotonic):
        self.now, self.end = now, now() + 60 * minutes
        self.longest, self.last = 0.0, None

    def left(self) -> float:
        return self.end - self.now()

    def may_start(self) -> bool:
        """To be asked before each job."""
        self.ended()
        self.last = self.now()
        return self.longest < self.left()

    def ended(self) -> None:
        """The job that was begun last is over; what follows is none."""
        if self.last is not None:
            self.longest = max(self.longest, self.now() - self.last)
        self.last = None


class Run:
    """One call of this program: what is done when, with what is in the file already."""

    def __init__(self, args, folder: str, clock: Clock, log):
        self.args, self.folder, self.clock, self.log = args, folder, clock, log
        self.results = core.open_results(args, folder)
        self.jobs = core.Jobs(args, folder, self.results, log)

    def tests(self) -> None:
        """The tests that need a GPU, once for each commit."""
        before = self.results.results.get("tests", {}).get("gpu", {})
        if before.get("status") is not None and before["commit"] == current_commit():
            self.log("tests: in the file already")
        elif not importlib.util.find_spec("pytest"):
            self.log("tests: left out: they need the package pytest")
        else:
            found = whole_commands.run_tests(TESTS_SHARE * self.clock.left())
            self.results.note("tests", {"gpu": found})
            for line in (f"tests: {found['outcome']}", *found["failed"]):
                self.log(line)

    def training(self, name: str) -> None:
        """One of the whole commands, if there is time for it."""
        kept = {"seed": self.args.seed, "use_gpu": self.args.use_gpu}
        kept["data"] = Path(self.args.data_dir).name
        before = self.results.results.get("trainings", {}).get(name, {})
        if before.get("settings") == kept and before["status"] == 0 and not self.args.force:
            self.log(f"{name}: in the file already")
        elif self.clock.left() < SPARE * whole_commands.TRAININGS[name].target:
            self.log(f"{name}: no time left: the same command goes on here")
        else:
            left = self.clock.left()
            found = whole_commands.run_training(name, self.args, self.folder, left)
            if found["status"] is not None:
                self.results.note("trainings", {name: {**found, "settings": kept}})
            self.log(f"{name}: {found['seconds']:.1f} s, status {found['status']}")

    def everything(self, *, tests: bool, trainings: bool) -> dict:
        if tests:
            self.tests()
        names = [*self.args.jobs]
        names[BEFORE_TRAININGS:BEFORE_TRAININGS] = whole_commands.TRAININGS if trainings else []
        for name in names:
            if name in whole_commands.TRAININGS:
                self.training(name)
            else:
                self.jobs.run(name, self.clock.may_start)
                self.clock.ended()
        return self.results.results


def summary(results: dict) -> str:
    """The tables of a results file, that of all jobs last."""
    tests = results.get("tests", {}).get("gpu")
    parts = [f"pytest -m gpu: {tests['outcome']}" if tests else ""]
    parts += [whole_commands.command_table(results), step_table(results), memory_table(results)]
    return "\n\n".join([part for part in parts if part] + [table(results)])


def page(results: dict) -> str:
    """The tables of a results file as docs/results.md has them."""
    parts = [table(results), whole_commands.command_table(results), step_table(results)]
    return "\n\n".join(part for part in parts if part)


def default_data() -> str:
    there = (ROOT / "data" / data_file("sst", "train")).exists()
    return str(ROOT / "data" if there else ROOT / "data" / "sample")


def get_args(argv=None):
    """(this program's own arguments, those of core.py)."""
    parser = Parser(__doc__, epilog=EPILOG)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--skip_tests", action="store_true", help="no pytest -m gpu")
    parser.add_argument("--skip_trainings", action="store_true", help="no whole commands")
    own, others = parser.parse_known_args(argv)
    return own, core.get_args([*DEFAULTS, "--data_dir", default_data(), *others])


@command
def main():
    own, args = get_args()
    check_committed(args)
    start_worker(args.use_gpu)  # before anything is made, it says if no GPU is there
    clock = Clock(own.minutes)
    seed_everything(args.seed)
    [size] = args.model_size
    folder = core.random_folder(size, args.tokenizer) if size in SIZES else size
    run = Run(args, folder, clock, partial(print, flush=True))
    results = run.everything(tests=not own.skip_tests, trainings=not own.skip_trainings)
    print("", summary(results), sep="\n")


if __name__ == "__main__":
    main()
