"""The kill storm: programs are killed at random moments, resumed, and compared bit for bit.

    python -m tests.storm --minutes 10

A chain starts a command, sends it SIGKILL, SIGTERM, SIGINT or SIGHUP one to four times, each at a
random moment of a start of its own, lets it end by --resume, and compares every file that it wrote
with an uninterrupted run's, times left out. Half of the chains repeat a run that was finished. Exit
codes, messages, locks, processes and files that are left over are looked at, too. Most commands are
forked from a process that has imported everything; every tenth one is started as a person would.

The seed decides what is killed by what; at which write a moment comes, the machine decides.
"""

import itertools
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from storm.chains import Chain, Reference, prepare, start, wrong_end
from storm.jobs import JOBS, Job, preload, turns, write_inputs
from storm.outputs import differences
from storm.processes import CONTEXT

from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.storm_table import table
from benchmarks.timing import environment, write_results
from engine.errors import InputError, Parser, command
from engine.flags import check_range

PYTHON = 2.0  # seconds until Python and torch are there, which this process does not import anew
SECONDS = 600  # in which an uninterrupted run must be done


class Storm:
    """The chains of all jobs, in a folder of their own."""

    def __init__(self, jobs: list[Job], folder: Path, seed: int):
        self.jobs, self.folder, self.seed = jobs, folder, seed
        self.inputs = folder / "inputs"
        self.count = itertools.count()
        self.importing = 0.0  # seconds that a process needs before it is where a forked one begins
        self.references: dict[str, Reference] = {}
        self.chains: dict[str, list[Chain]] = {job.name: [] for job in jobs}

    def prepare(self) -> None:
        """Import what is forked; write the inputs in a process of their own: threads stay there."""
        began = time.monotonic()
        preload(self.jobs)
        self.importing = time.monotonic() - began + PYTHON
        writer = CONTEXT.Process(target=write_inputs, args=(self.inputs,))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise InputError("the storm's inputs could not be written: see above")

    def reference(self, job: Job) -> Reference:
        """The uninterrupted run of a job, on its first use; two must have the same bits."""
        if job.name not in self.references:
            (first, one), (second, other) = self.uninterrupted(job), self.uninterrupted(job)
            if unlike := differences(one, other):
                raise InputError(f"{job.name}: two uninterrupted runs differ: {unlike[0]}")
            seconds = {True: second, False: first + self.importing * (job.processes == 1)}
            self.references[job.name] = Reference(job, one, seconds)
        return self.references[job.name]

    def uninterrupted(self, job: Job) -> tuple[float, Path]:
        """Seconds and folder of a run; a forked one needs fewer the second time."""
        folder, forked = self.folder / f"{job.name} {next(self.count)}", job.processes == 1
        prepare(self.inputs, folder)
        started = start(job, folder, resume=False, forked=forked)
        if not started.ends_within(SECONDS) or wrong_end(started, [], False, job.processes):
            said = " | ".join(started.said)[-600:]
            raise InputError(f"{job.name}: an uninterrupted run fails: {said}")
        seconds = started.seconds
        if forked:
            started.import_modules()
        return seconds, folder

    def chain(self, number: int) -> Chain:
        """The chain of this number, run to its end: what it is, the seed decides."""
        draw = random.Random(f"{self.seed} {number}")
        job = next(itertools.islice(turns(self.jobs), number, None))
        reference = self.reference(job)
        forked = job.processes == 1 and draw.random() < 0.9
        folder = self.folder / f"chain {number}"
        anew = job.repeats and draw.random() < 0.5
        chain = Chain(reference, self.inputs, folder, draw, forked=forked, anew=anew)
        chain.run()
        self.chains[job.name].append(chain)
        return chain

    def results(self) -> dict:
        """Figures of each job: chains, starts, kills by signal, chains with differences."""
        return {
            name: {
                "chains": len(chains),
                "starts": sum(chain.starts for chain in chains),
                "kills": dict(sum((chain.kills for chain in chains), Counter())),
                "differences": sum(bool(chain.problems) for chain in chains),
            }
            for name, chains in self.chains.items()
            if chains
        }


def described(number: int, chain: Chain) -> str:
    """A line about a chain."""
    kills = ", ".join(f"{count} {name}" for name, count in chain.kills.items()) or "no kill in time"
    how = ("again" if chain.anew else "new") + (", forked" if chain.forked else "")
    end = "; ".join(chain.problems) or "as uninterrupted"
    return f"{number}: {chain.reference.job.name} ({how}): {kills}, {chain.starts} starts: {end}"


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="default: drawn anew and shown")
    names = [job.name for job in JOBS]
    parser.add_argument("--jobs", nargs="+", choices=names, default=names, metavar="JOB")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    add_commit_flag(parser)
    args = parser.parse_args(argv)
    check_range(args, "minutes", 0)
    if args.seed is None:
        args.seed = random.randrange(2**31)
    if args.out:
        check_committed(args)
    return args


def run(args, folder: Path) -> dict:
    """Chains until the time is over, at least one; their figures."""
    storm = Storm([job for job in JOBS if job.name in args.jobs], folder, args.seed)
    storm.prepare()
    deadline, number = time.monotonic() + 60 * args.minutes, 0
    while number == 0 or time.monotonic() < deadline:
        print(described(number, storm.chain(number)), flush=True)
        number += 1
    return storm.results()


@command
def main():
    args = get_args()
    print(f"seed {args.seed}, {args.minutes:g} minutes: {', '.join(args.jobs)}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    jobs = run(args, folder)
    import torch

    facts = {"seed": args.seed, "minutes": args.minutes, **environment(torch.device("cpu"))}
    print(table(results := {**facts, "jobs": jobs}))
    if args.out:
        write_results(args.out, results)
    if wrong := sum(job["differences"] for job in jobs.values()):
        raise InputError(f"{wrong} chains differ, as told above; their folders are in {folder}")
