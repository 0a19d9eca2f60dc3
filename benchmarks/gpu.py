"""The jobs of `core.py` on one GPU in a few minutes, the most important ones first.

    python benchmarks/gpu.py --minutes 8

The starter, transformers and this project, eager and with recorded steps, in bfloat16 where they
have it. All flags of core.py serve, too; by default the weights are random ones of gpt2's size and
the rows those of data/, or of data/sample. Each job is in the results file when it is done, and no
job begins that would not end in time: the same command again goes on with the next one.
"""

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command
from engine.files import ROOT
from engine.parallel import seed_everything, start_worker

# isort: split

from benchmarks import core
from benchmarks.provenance import check_committed
from benchmarks.report import memory_table, table
from config import SIZES
from engine.records import data_file

ORDER = ("sst-8", "decode", "paraphrase-64", "cfimdb-8", "sonnets-8", "evaluate", "sst-64", "head")
ORDER = (*ORDER, "step", "start")
DEFAULTS = ["--use_gpu", "--bf16", "--batches", "24", "--repeats", "2", "--jobs", *ORDER]
DEFAULTS += ["--tokenizer", str(ROOT / "pretrained" / "gpt2-mini")]
DEFAULTS += ["--out", "benchmarks/results/gpu.json"]


class Clock:
    """Says whether one more job, as long as the longest so far, ends in time."""

    def __init__(self, minutes: float, now=time.monotonic):
        self.now, self.end = now, now() + 60 * minutes
        self.longest, self.last = 0.0, None

    def may_start(self) -> bool:
        """To be asked before each job."""
        now = self.now()
        if self.last is not None:
            self.longest = max(self.longest, now - self.last)
        self.last = now
        return now + self.longest < self.end


def default_data() -> str:
    there = (ROOT / "data" / data_file("sst", "train")).exists()
    return str(ROOT / "data" if there else ROOT / "data" / "sample")


def get_args(argv=None):
    """(minutes, the arguments of core.py)."""
    parser = Parser(__doc__, epilog="All other flags are core.py's: benchmarks/core.py --help.")
    parser.add_argument("--minutes", type=float, default=8.0)
    own, others = parser.parse_known_args(argv)
    return own.minutes, core.get_args([*DEFAULTS, "--data_dir", default_data(), *others])


@command
def main():
    minutes, args = get_args()
    check_committed(args)
    start_worker(args.use_gpu)  # before anything is made, it says if no GPU is there
    clock = Clock(minutes)
    seed_everything(args.seed)
    [size] = args.model_size
    folder = core.random_folder(size, args.tokenizer) if size in SIZES else size
    results = core.run_size(args, folder, partial(print, flush=True), clock.may_start).results
    print(memory_table(results), table(results), sep="\n\n")


if __name__ == "__main__":
    main()
