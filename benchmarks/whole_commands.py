"""What `gpu.py` runs as whole commands: the tests that need a GPU, and the course's training.

A command gets the time that is left at most. Its files lie in a folder that is thrown away.
"""

import importlib.util
import json
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.jobs import read_rows
from engine.children import start_child
from engine.files import ROOT
from engine.hub import checkpoint_folder

WORKERS = 6  # processes of pytest-xdist
WHOLE = 8544  # rows of SST's train file
TARGETED = ("gpt2", "gpt2-random")  # checkpoints that the targets are for, with the whole file


@dataclass(frozen=True)
class Training:
    """`classifier.py` on SST, all epochs. target: seconds on an H100 or H200, see `TARGETED`."""

    flags: tuple[str, ...]
    target: float


TRAININGS = {"whole-bf16": Training(("--bf16",), 75.0), "whole-float32": Training((), 100.0)}


@dataclass(frozen=True)
class Outcome:
    status: int | None  # None: there was no time for it to end
    seconds: float
    lines: list[str]  # that it wrote


def run(words: list, folder: Path, limit: float) -> Outcome:
    """Run a program of Python's in a folder, for so many seconds at most."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        started = time.perf_counter()
        child = start_child(words, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            child.kill()
            child.wait()
        elapsed = time.perf_counter() - started
        child.stdin.close()
        said.seek(0)
        return Outcome(status, elapsed, said.read().splitlines())


# -- tests -------------------------------------------------------------------------------------


def run_tests(limit: float, folder: Path = ROOT, marker: str = "gpu") -> dict:
    """`pytest -m gpu`: how it ended; in parallel processes where pytest-xdist is."""
    words = ["-m", "pytest", "-m", marker, "-q", "-p", "no:cacheprovider"]
    workers = WORKERS if importlib.util.find_spec("xdist") else 1
    if workers > 1:
        words += ["--numprocesses", str(workers), "--dist", "worksteal"]
    found = run(words, folder, limit)
    failed = [line for line in found.lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "outcome": summary_line(found),
        "status": found.status,
        "failed": [line[:200] for line in failed[:20]],
        "seconds": round(found.seconds, 1),
        "workers": workers,
    }


def summary_line(found: Outcome) -> str:
    """The counts that pytest writes last, without its rule of =."""
    if found.status is None:
        return f"stopped after {found.seconds:.0f} s"
    last = next((line for line in reversed(found.lines) if line.strip()), "nothing was said")
    return re.sub(r"^=+ | =+$", "", last)


# -- training ----------------------------------------------------------------------------------


def run_training(name: str, args, model_folder: str, limit: float) -> dict:
    """One of TRAININGS, timed from its start to its end: reading, all epochs, predictions, files.

    epoch_seconds: of the steps alone, as the run's metrics have them.
    """
    with tempfile.TemporaryDirectory(prefix="bench-whole-") as scratch:
        found = run(training_words(name, args, model_folder), Path(scratch), limit)
        files = Path(scratch).glob("runs/*/metrics.jsonl")
        text = "".join(file.read_text(encoding="utf-8") for file in files)
    rows = len(read_rows("sst", "train", Path(args.data_dir)))
    row = {
        "command": command_line(name, args.use_gpu),
        "rows": rows,
        "epoch_seconds": [json.loads(line)["seconds"] for line in text.splitlines()],
        "seconds": found.seconds,
        "status": found.status,
    }
    if rows == WHOLE and Path(model_folder).name in TARGETED:
        row["target"] = TRAININGS[name].target
    return row | ({"error": found.lines[-1][:300]} if found.status and found.lines else {})


def training_words(name: str, args, model_folder: str) -> list:
    """The same words with the places of data and checkpoint, for a run in another folder."""
    flags = ["--model_size", Path(checkpoint_folder(model_folder)).resolve()]
    flags += ["--data_dir", Path(args.data_dir).resolve()]
    return [ROOT / "classifier.py", *command_line(name, args.use_gpu).split()[2:], *flags]


def command_line(name: str, use_gpu: bool) -> str:
    """As a person types it, whose data and checkpoint are where the program looks for them."""
    flags = ["--use_gpu"] * use_gpu + [*TRAININGS[name].flags]
    flags += ["--dataset", "sst", "--fine-tune-mode", "full-model"]
    return " ".join(["python", "classifier.py", *flags])


def command_table(results: dict) -> str:
    """Markdown: a row a command; nothing if there is none."""
    rows = results.get("trainings", {}).values()
    if not rows:
        return ""
    lines = ["| command | SST rows | epochs | in epochs, s | whole command, s | target, s |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        epochs = row["epoch_seconds"]
        failed = "" if row["status"] == 0 else f", status {row['status']}"
        cells = [f"`{row['command']}`", f"{row['rows']:,}", f"{len(epochs)}", f"{sum(epochs):.1f}"]
        cells += [
            f"{row['seconds']:.1f}{failed}",
            f"{row['target']:.0f}" if "target" in row else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
