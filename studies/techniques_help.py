"""Do techniques help? Each of extensions/ on gpt2-mini, against plain fine-tuning.

    python studies/techniques_help.py --bf16 --jobs 2

How runs are made, chosen and kept: studies/study.py.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command

# isort: split

from studies.study import (
    RUNS,
    Study,
    add_study_arguments,
    mean_and_spread,
    metric_of,
    parse,
    scores,
    shown,
)

PLAIN = "plain"
CONTESTANTS = [
    PLAIN,
    "lora:rank=16,targets=all",
    "lora:rank=16,targets=all,dora=true",
    "reft:rank=8",
    "prefix",
    "rdrop",
    "llrd:decay=0.8",
    "ema",
    "swa:start=300,every=20",
    "muon",
    "soap",
    "shampoo",
    "kfac",
    "qat",
    "qat:bits=4",
    "sliding_window:window=32",
    "smart",  # last, since a run takes as long as four others
    "smart:weight=0,proximal=1",
]
RATES = (3e-4, 1e-3)
HIGHER = (1e-3, 3e-3)
WITH_HIGHER = ("lora", "reft", "prefix", "muon")  # few weights, or updates of another size
EPOCHS = {"sst": 2}  # in place of the study's own number


def flags_of(name: str, contestant: str, seed: int, folder: str) -> list[str]:
    flags = ["--model_size", "gpt2-mini"]
    flags += [] if contestant == PLAIN else ["--extension", contestant]
    return flags + (["--epochs", str(EPOCHS[name])] if name in EPOCHS else [])


def rates_of(contestant: str) -> tuple[float, ...]:
    return HIGHER if contestant.partition(":")[0] in WITH_HIGHER else RATES


def run(study: Study) -> None:
    def contest(name: str, contestant: str) -> None:
        study.contest(name, contestant, partial(flags_of, name, contestant), rates_of(contestant))

    study.side_by_side(
        partial(contest, name, contestant)
        for name in study.args.tasks
        for contestant in CONTESTANTS
    )


def table(results: dict) -> str:
    """Markdown: a row a contestant, a column a task; the difference to plain is seed by seed."""
    runs = results["runs"]
    names = [name for name in RUNS if scores(runs, name, PLAIN)[1]]
    columns = [f"{name}, {metric_of(name).replace('_', ' ')} | against plain" for name in names]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|---|" * len(names)]
    for contestant in CONTESTANTS:
        cells = [_cells(runs, name, contestant) for name in names]
        label = contestant if contestant == PLAIN else f"`{contestant}`"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def brief(results: dict) -> str:
    """Markdown, one row: the techniques by what they add to SST's dev accuracy.

    Better or worse are those whose mean difference to plain is larger than its own standard
    deviation and than that of plain: more than another seed changes.
    """
    runs = results["runs"]
    _, plain = scores(runs, "sst", PLAIN)
    groups: dict[str, list[str]] = {"better": [], "no clear difference": [], "worse": []}
    for contestant in CONTESTANTS[1:]:
        added = differences(runs, "sst", contestant)
        if len(added) > 1:
            clear = abs(mean(added)) > max(stdev(added), stdev(plain))
            name = ("better" if mean(added) > 0 else "worse") if clear else "no clear difference"
            groups[name].append(f"`{contestant}` {mean(added):+.3f}")
    cells = [", ".join(group) or "–" for group in groups.values()]
    return f"| {' | '.join(groups)} |\n|---|---|---|\n| {' | '.join(cells)} |"


def differences(runs: dict[str, float], name: str, contestant: str) -> list[float]:
    """What a technique adds to plain, seed by seed; [] if it was not run with the same seeds."""
    (_, values), (_, plain) = scores(runs, name, contestant), scores(runs, name, PLAIN)
    if len(values) != len(plain):
        return []
    return [a - b for a, b in zip(values, plain, strict=True)]


def difference(runs: dict[str, float], name: str, contestant: str) -> str:
    """Mean ± standard deviation of what a technique adds to plain, seed by seed; "–" if unknown."""
    added = differences(runs, name, contestant)
    return mean_and_spread(added, ".3f", "+") if added else "–"


def _cells(runs: dict[str, float], name: str, contestant: str) -> str:
    rate, values = scores(runs, name, contestant)
    if not values:
        return "– | –"
    added = "–" if contestant == PLAIN else difference(runs, name, contestant)
    return f"{shown(name, values)} ({rate}) | {added}"


@command
def main():
    parser = Parser(description=__doc__.splitlines()[0])
    out = "studies/results/techniques_help.json"
    add_study_arguments(parser, out=out, tasks=["sst"])
    study = Study(parse(parser))
    run(study)
    print(table(study.results))


if __name__ == "__main__":
    main()
