"""What a run of a task says: facts at its start, a line an epoch, and at its end what came of it.

A person reads lines; `--quiet` leaves the results alone. With `--json` each is an object a line on
the standard output, "event" being start, epoch or end, and all other text goes to stderr.
"""

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Iterator

from engine.errors import notice
from engine.parallel import Worker
from engine.progress_bar import bars
from engine.settings import Settings


class Report:
    """What the main worker says; the others say nothing."""

    def __init__(self, settings: Settings, worker: Worker, stream):
        self.json, self.main, self.stream = settings.json, worker.is_main, stream
        self.quiet = settings.quiet

    def start(self, facts: dict) -> None:
        self._say("start", facts, opening(facts))

    def epoch(self, record: dict, task: str) -> None:
        self._say("epoch", {"task": task} | record, epoch_line(record))

    def end(self, facts: dict) -> None:
        self._say("end", facts, closing(facts))

    def log(self, line: str) -> None:
        """A line about something out of the ordinary."""
        if self.main and self.quiet:
            notice(line)
        elif self.main:
            self._write(line, sys.stdout)

    def text(self, text: str) -> None:
        """A text for a person."""
        if self.main and not self.quiet:
            self._write(text, sys.stdout)

    def _say(self, event: str, facts: dict, text: str) -> None:
        if self.json and self.main:
            whole = {"event": event} | _finite(facts)
            self._write(json.dumps(whole, ensure_ascii=False, default=str), self.stream)
        elif not self.json:
            self.text(text)

    @staticmethod
    def _write(text: str, stream) -> None:
        stream.write(f"{text}\n")
        stream.flush()


@contextlib.contextmanager
def reporting(settings: Settings, worker: Worker) -> Iterator[Report]:
    """The report of a run; in the block --json sends to stderr what others print."""
    with contextlib.ExitStack() as stack:
        report = Report(settings, worker, sys.stdout)
        stack.enter_context(bars(worker.is_main and not settings.quiet))
        if settings.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield report


def _finite(value):
    """JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def opening(facts: dict) -> str:
    """The facts of the start as aligned lines."""
    trainable, total = (facts["parameters"][name] for name in ("trainable", "total"))
    rows = ", ".join(f"{count:,} {split}" for split, count in facts["rows"].items())
    plan = ", ".join(filter(None, [facts["mode"], f"lr {facts['lr']:g}"]))
    lines = {
        "checkpoint": ", ".join([facts["checkpoint"], *facts["extensions"]]),
        "parameters": f"{trainable:,} trainable of {total:,}",
        "device": facts["device"] + f", {facts['workers']} processes" * (facts["workers"] > 1),
        "precision": facts["precision"],
        "rows": rows,
        "training": f"{epochs(facts)} of {facts['steps_per_epoch']:,} steps",
        "run folder": facts["folder"],
        "predictions": ", ".join(facts["predictions"].values()),
    }
    return f"{facts['task']}: {plan}\n{aligned(lines)}"


def epoch_line(record: dict) -> str:
    """The figures of an epoch: a count as it is, everything else with three decimals."""
    shown = [
        f"{_words(key)} :: {value if isinstance(value, int) else f'{value:.3f}'}"
        for key, value in record.items()
        if key != "epoch"
    ]
    return f"Epoch {record['epoch']}: {', '.join(shown)}"


def closing(facts: dict) -> str:
    """What came of a run as aligned lines, and the next command."""
    if "best_epoch" not in facts:
        return f"next: {facts['next']}"
    lines = {
        _words(name): f"{value:.3f}{beside(facts['references'].get(name, {}))}"
        for name, value in facts["figures"].items()
    }
    lines["time"] = f"{facts['seconds']:.1f} s of training in {epochs(facts)}"
    lines["look"] = f"{facts['folder']}/curves.png"
    lines |= {name: facts[name] for name in ("report", "predict") if facts[name]}
    head = f"{facts['task']}: best epoch {facts['best_epoch']}, counted from 0"
    return f"{head}\n{aligned(lines)}\nnext: {facts['next']}"


def beside(reference: dict) -> str:
    """What stands beside a figure: its interval, and the majority class's figure."""
    said = ""
    if "interval" in reference:
        low, high = reference["interval"]
        said += f" (95 % interval {low:.3f} to {high:.3f}, {reference['rows']:,} rows)"
    if "majority" in reference:
        said += f"; majority-class baseline {reference['majority']:.3f}"
    return said


def epochs(facts: dict) -> str:
    return f"{facts['epochs']} epoch{'s' * (facts['epochs'] != 1)}"


def aligned(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in lines.items())


def command_line(words: list[str], settings: Settings, *more: str) -> str:
    """A command of the same task, with the flags that say where it runs and on what."""
    flags = [] if settings.data_dir == "data" else ["--data_dir", settings.data_dir]
    flags += ["--use_gpu"] if settings.use_gpu else []
    return shlex.join(["python", *words, *flags, *more])


def _words(name: str) -> str:
    return name.replace("_", " ")
