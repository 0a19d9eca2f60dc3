"""One job by all its peers in turns: the check that they do the same, times, memory, the limit."""

import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import torch

from benchmarks import counts, limits
from benchmarks.huggingface import Transformers, TransformersBf16
from benchmarks.jobs import Job, Settings, Workload
from benchmarks.peers import Ours, OursCompiled, OursEager, OursFloat32, Starter, TorchFused
from benchmarks.timing import Alone, alternate, seconds, summary
from engine.errors import InputError
from engine.files import ROOT

PEERS = {
    "starter": Starter,
    "transformers": Transformers,
    "transformers-bf16": TransformersBf16,
    "torch-fused": TorchFused,
    "ours-compiled": OursCompiled,
    "ours-eager": OursEager,
    "ours-float32": OursFloat32,
    "ours": Ours,
}
START = {  # what a script of each peer imports before it can answer --help
    "starter": ["-c", "import benchmarks.starter; from transformers import GPT2Tokenizer"],
    "transformers": ["-c", "from transformers import GPT2ForSequenceClassification, Trainer"],
    "ours": ["classifier.py", "--help"],
}
OPTIONAL = ("ours-compiled", "ours-eager", "ours-float32")  # without them a job is measured, too
LONG = 120  # seconds: what takes longer is not repeated
TOLERANCES = {"step": 1e-6}  # of the largest weight, a thousandth of a step; else of logits


class Match:
    """One job by its peers, each in a process of its own."""

    def __init__(self, job: Job, settings: Settings, log):
        self.job, self.settings, self.log = job, settings, log
        self.processes: dict[str, Alone] = {}
        self.skipped: dict[str, str] = {}
        self.warm: dict[str, dict] = {}
        self.work = Workload(job, settings)

    def start(self, names: list[str]) -> None:
        """A process for each peer that can do the job here; they load at the same time."""
        reasons = {name: PEERS[name].missing(self.job) for name in names}
        with ThreadPoolExecutor() as pool:
            started = {
                name: pool.submit(Alone, PEERS[name], self.job, self.settings)
                for name in names
                if not reasons[name]
            }
        for name in names:
            if reasons[name]:
                self._leave_out(name, reasons[name])
            else:
                process = self._attempt(name, started[name].result)
                self.processes |= {name: process} if process else {}

    def _leave_out(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        self.log(f"{self.job.name}: without {name}: {reason}")
        if name in self.processes:
            self.processes.pop(name).close()

    def _attempt(self, name: str, call):
        """What the call returns; a peer whose memory does not suffice leaves the match, and so does
        one of ours whose flags this machine refuses, as --compile without a compiler."""
        try:
            return call()
        except (torch.OutOfMemoryError, MemoryError):
            self._leave_out(name, "out of memory")
        except BrokenProcessPool:
            self._leave_out(name, "killed: the system's memory may not have sufficed")
        except InputError as error:
            if name not in OPTIONAL:
                raise
            self._leave_out(name, f"refused: {error}")

    def ask(self, method: str, *arguments) -> dict:
        """Every peer's answer, one after the other."""
        found = {}
        for name in list(self.processes):
            ask = partial(self.processes[name].ask, method, *arguments)
            found[name] = self._attempt(name, ask)
        return {name: value for name, value in found.items() if name in self.processes}

    def play(self, repeats: int) -> dict[str, list[dict]]:
        """What each peer reports of each of its turns, after those that get it ready."""
        self.warm = self.ask("warm_up")
        turns: dict[str, list[dict]] = {name: [] for name in self.processes}
        for _ in range(repeats):
            for name in list(self.processes):
                if turns[name] and turns[name][-1]["seconds"] > LONG:
                    continue
                turn = self._attempt(name, partial(self.processes[name].ask, "run"))
                if turn:
                    check_same_work(name, turn, self.work.expected())
                    turns[name].append(turn)
        return {name: found for name, found in turns.items() if name in self.processes}

    def profile(self, turns: dict[str, list[dict]]) -> dict[str, dict]:
        """Where the time of each peer's steps goes, where that can be told.

        Trouble in these turns costs no figure of those that were timed.
        """
        if self.job.kind != "train" or not self.settings.use_gpu:
            return {}
        found = {}
        for name in self.processes:
            if turns[name][-1]["seconds"] > LONG:
                continue
            try:
                found[name] = self.processes[name].ask("profile")
            except (InputError, RuntimeError) as error:
                self.log(f"{self.job.name}: no figures of {name}'s steps: {error}")
        return found

    def close(self) -> None:
        for process in self.processes.values():
            process.close()


def check_same_work(name: str, counted: dict, expected: dict) -> None:
    """Refuse the time of a peer that did less, or more, than the job."""
    wrong = [
        f"{counted[key]} {key}, expected {n}" for key, n in expected.items() if counted[key] != n
    ]
    if wrong:
        raise InputError(f"{name} did not do this job: {', '.join(wrong)}: mend benchmarks/")


def check_same_answers(answers: dict[str, np.ndarray], tolerance: float) -> dict[str, float]:
    """Each peer's largest difference from ours; more than rounding is refused.

    tolerance: as a share of our largest figure.
    """
    name = "ours" if "ours" in answers else next(iter(answers))
    reference = answers[name]
    differences = {}
    for other, answer in answers.items():
        if answer.shape != reference.shape:
            raise InputError(
                f"{other} answers {answer.shape}, {name} {reference.shape}: mend benchmarks/"
            )
        differences[other] = float(np.abs(answer - reference).max())
        allowed = tolerance * float(np.abs(reference).max())
        if not differences[other] <= allowed:
            raise InputError(
                f"{other} computes something else than {name}: {differences[other]:.1e} apart, "
                f"expected at most {allowed:.1e}: mend benchmarks/"
            )
    return {other: value for other, value in differences.items() if other != name}


def measure(job: Job, settings: Settings, names: list[str], *, repeats: int, machine: dict, log):
    """A row of the results: times, memory, the check, and the share of the machine's limit."""
    if job.kind == "start":
        return start_up(names, repeats)
    match = Match(job, settings, log)
    try:
        match.start(names)
        differences = check_same_answers(match.ask("answer"), TOLERANCES.get(job.kind, 1e-3))
        turns = match.play(repeats)
        peaks = match.ask("peak_mb")
        steps = match.profile(turns)
    finally:
        match.close()
    work = match.work
    times = {name: summary([turn["seconds"] for turn in found]) for name, found in turns.items()}
    row = {
        "job": work.title(),
        "work": len(work.rows) or 1,
        "seconds": times,
        "peak_mb": peaks,
        "answers_differ_by": differences,
        "limit": limit(work, settings, times, machine),
    }
    if job.kind == "train":
        tokens = sum(map(len, work.tokens(work.rows)))
        row["padding"] = {name: found[-1]["positions"] / tokens for name, found in turns.items()}
    if settings.use_gpu:
        row["warm_up"] = {name: match.warm[name] | late(found) for name, found in turns.items()}
    more = {"steps": steps, "skipped": match.skipped}
    return row | {key: found for key, found in more.items() if found}


def late(turns: list[dict]) -> dict[str, float]:
    """What was recorded in the turns that are timed: decoding records anew for each call."""
    return {"seconds_a_turn": statistics.median(turn["recording_seconds"] for turn in turns)}


def limit(work: Workload, settings: Settings, times: dict, machine: dict) -> dict:
    """The job's counted work, the least time for it, and each peer's share of that limit."""
    phases, traffic = counts.phases(work), limits.best_bandwidth(machine)
    precisions = {name: PEERS[name].precision(work.job, settings) for name in times}
    least = {
        precision: counts.limit_seconds(phases, limits.best_rate(machine, precision), traffic)
        for precision in dict.fromkeys(precisions.values())
    }
    return {
        "flops": sum(phase.flops for phase in phases),
        "bytes": sum(phase.bytes for phase in phases),
        "seconds": least,
        "share": {name: least[precisions[name]] / times[name]["median"] for name in times},
    }


def start_up(names: list[str], repeats: int) -> dict:
    """Seconds until a program could answer --help."""

    def ask(argv: list[str]) -> float:
        run = partial(subprocess.run, [sys.executable, *argv], cwd=ROOT, capture_output=True)
        return seconds(lambda: run(check=True))

    times = alternate({name: partial(ask, START[name]) for name in names}, 2 * repeats + 1)
    spread = {name: summary(values) for name, values in times.items()}
    return {"job": "start-up, until --help could be answered", "work": 1, "seconds": spread}
