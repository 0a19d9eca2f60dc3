"""How long runs of GPT-2 itself may take, by the rows a second that benchmarks/ has measured.

It is the time of training alone: dev figures and the start of programs come on top.
"""

import json
from pathlib import Path

from engine.files import ROOT
from engine.records import NUM_LABELS, data_file, read_pairs, read_sentiment, read_sonnets
from programs.tasks import TASKS
from studies.entries import Study
from studies.plan import Run

RESULTS = ROOT / "benchmarks" / "results"
JOBS = {  # (task, fine-tune mode) -> the benchmark's job; head is of all 10 epochs
    ("sst", "full-model"): "sst-8",
    ("sst", "last-linear-layer"): "head",
    ("cfimdb", "full-model"): "cfimdb-8",
    ("paraphrase", None): "paraphrase-64",
    ("sonnet", None): "sonnets-8",
}
HEAD_EPOCHS = 10


def training_rows(task: str, data_dir: Path) -> int:
    path = data_dir / data_file(task, "train")
    if task == "sonnet":
        return len(read_sonnets(path))
    if task == "paraphrase":
        return len(read_pairs(path, labelled=True).records)
    return len(read_sentiment(path, NUM_LABELS[task]))


def seconds_of(run: Run, rows: int, use_gpu: bool) -> tuple[float, str] | None:
    """(seconds, the machine that they are of); None if no benchmark has timed such steps."""
    task = TASKS[run.study.task]
    settings = task.get_args([*task.command[1:], *run.settings["flags"].split()])
    name = JOBS.get((task.name, getattr(settings, "fine_tune_mode", None)))
    results = json.loads(
        (RESULTS / f"{'gpu' if use_gpu else 'core'}.json").read_text(encoding="utf-8")
    )
    job = next((job for job in results["jobs"] if job["name"] == name), None)
    if job is None:
        return None
    epochs = settings.epochs / HEAD_EPOCHS if name == "head" else settings.epochs
    each = job["seconds"]["ours"]["median"] / job["work"]
    return each * rows * epochs, results["hardware"]


def forecast(study: Study, runs: list[Run], args) -> list[str]:
    """A line for each contestant that trains, about its missing runs."""
    rows = min(training_rows(study.task, Path(args.data_dir)), args.limit or 10**9)
    lines = []
    for one in study.contestants:
        mine = [run for run in runs if run.contestant == one]
        if not mine or (one.kind or study.kind) != "fine-tune":
            continue
        found = seconds_of(mine[0], rows, args.use_gpu)
        text = "unknown: benchmarks/ has timed no such steps"
        if found:
            seconds, machine = found
            text = f"{seconds * len(mine) / 3600:.2f} hours of training on {machine}"
        lines.append(f"{study.name}, {one.name}, {len(mine)} runs: {text}")
    return lines
