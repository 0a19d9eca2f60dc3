"""Write the measured tables of README.md, docs/results.md and extensions/README.md.

    python benchmarks/tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. The list of techniques in
extensions/README.md is written by hand but for its last two columns, cost and result.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command
from engine.files import ROOT, atomic_write

# isort: split

from benchmarks import (
    core,
    epochs_table,
    extension_tables,
    extensions,
    gpu,
    pretrain,
    report,
    scaling_curves,
    storm_table,
)
from benchmarks.provenance import described
from studies import tables as studies
from studies.records import Records

BENCHMARKS, STUDIES = (ROOT / folder / "results" for folder in ("benchmarks", "studies"))
IN_README = ("sst-8", "paraphrase-64", "head", "sonnets-8", "decode", "step")  # one of each kind


def of_runs(table: Callable[[list[dict]], str], machine: bool = False) -> Callable[[dict], str]:
    """A table of a suite's runs, made of what `results_of` gives; machine: name it below."""

    def made(results: dict) -> str:
        where = f"\n\nOn {results['hardware']}." if machine and results["runs"] else ""
        return table(results["runs"]) + where

    return made


# page -> a table's name -> the results file that it is made of, and how
TABLES: dict[str, dict[str, tuple[str, Callable[[dict], str]]]] = {
    "README.md": {
        "core_ratios": ("core", lambda results: report.ratio_table(results, IN_README)),
        "pretraining_pays": ("pretraining", of_runs(studies.pretraining)),
        "techniques_brief": ("techniques", of_runs(studies.techniques_brief)),
        "quantized_brief": ("programs", of_runs(studies.quantized_brief)),
    },
    "docs/results.md": {
        "core": ("core", core.table),
        "core_memory": ("core", report.memory_table),
        "gpu": ("gpu", gpu.page),
        "gpu-before-recording": ("gpu-before-recording", core.table),
        "core-bf16": ("core-bf16", core.table),
        "core-compiled": ("core-compiled", core.table),
        "scaling": ("scaling", scaling_curves.table),
        "pretraining_pays": ("pretraining", of_runs(studies.pretraining)),
        **{
            f"{suite}_answers": (suite, of_runs(partial(studies.answers, suite)))
            for suite in ("pretraining", "techniques", "programs", "followups")
        },
        "followups": ("followups", of_runs(partial(studies.one_by_one, "followups"), True)),
        "gpt2": ("gpt2", of_runs(partial(studies.one_by_one, "gpt2"), True)),
        "pretrain": ("pretrain", pretrain.table),
        "pretrain-gpu": ("pretrain-gpu", epochs_table.table),
        "storm": ("storm", storm_table.table),
    },
    "extensions/README.md": {
        "sizes": (
            "extensions",
            lambda parts: extension_tables.step_table(parts["sizes"]["figures"]),
        ),
        "reading": (
            "extensions",
            lambda parts: extension_tables.memory_table(parts["reading"]["figures"]),
        ),
        "attention": (
            "extensions",
            lambda parts: extension_tables.attention_table(parts["attention"]["figures"]),
        ),
        "techniques_help": ("techniques", of_runs(partial(studies.one_by_one, "techniques"))),
        "programs_help": ("programs", of_runs(partial(studies.one_by_one, "programs"))),
    },
}
WITHOUT_COMMITS = "README.md"  # it sends to the other pages for these
WITH_CELLS = "extensions/README.md"


def results_of(file: str) -> dict:
    """What a benchmark has measured; of a suite of studies, its runs."""
    path = BENCHMARKS / f"{file}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    runs = Records(STUDIES).read(file)
    return {"runs": runs, "hardware": ", ".join(sorted({run["hardware"] for run in runs}))}


def filled(page: str, text: str) -> str:
    """The text of a page with the tables, costs and results of today's files."""
    made = {}
    for name, (file, table) in TABLES[page].items():
        results = results_of(file)
        commits = "" if page == WITHOUT_COMMITS else f"\n\n{described(results)}"
        made[name] = table(results) + commits
    text = with_tables(text, made)
    return with_cells(text, measured_costs(), measured_results()) if page == WITH_CELLS else text


def measured_costs() -> dict[str, str]:
    """What each technique costs, as benchmarks/extensions.py measured it."""
    figures = results_of("extensions")["techniques"]["figures"]
    _, *flags = extensions.TECHNIQUES  # the first one is plain fine-tuning
    return by_technique({flag: extension_tables.cost(figures, flag) for flag in flags})


def measured_results() -> dict[str, str]:
    """What each technique adds to SST's dev accuracy, as the suite of techniques measured it."""
    found = studies.technique_results(results_of("techniques")["runs"])
    return by_technique(
        {
            flag: extension_tables.NOT_YET if text == studies.NONE else text
            for flag, text in found.items()
        }
    )


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The text with each table between its marks; InputError where marks are missing."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        if text.count(start) != 1 or text.count(end) != 1:
            raise InputError(f"no place for the table {name}: write {start}{end}once")
        before, rest = text.split(start)
        text = f"{before}{start}\n{table}\n\n{end}{rest.split(end)[1]}"
    return text


def with_cells(text: str, costs: dict[str, str], results: dict[str, str]) -> str:
    """The text with the last two cells of each technique's row; others stay as they are."""

    def row(match: re.Match) -> str:
        name, middle, cost, result = match.groups()
        return f"| `{name}.py` {middle} {costs.get(name, cost)} | {results.get(name, result)} |"

    # file | paper, seam, command, oracle | cost | result
    pattern = r"^\| `(\w+)\.py` (\|(?: [^|\n]+ \|){4}) ([^|\n]+) \| ([^|\n]+) \|$"
    return re.sub(pattern, row, text, flags=re.MULTILINE)


def by_technique(texts: dict[str, str]) -> dict[str, str]:
    """Name -> what is said of it, variants with their options before: {"lora:rank=4": "0.1"}."""
    cells: dict[str, list[str]] = {}
    for flags, text in texts.items():
        name, _, options = flags.partition(":")
        parts = cells.setdefault(name, [])
        if text != extension_tables.NOT_YET:
            parts.append(f"`{options}`: {text}" if options else text)
    return {name: "; ".join(parts) or extension_tables.NOT_YET for name, parts in cells.items()}


def write() -> None:
    """Write the pages anew, and say which of them changed."""
    for name in TABLES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(name, before)
        if after != before:
            with atomic_write(path) as file:
                file.write(after)
        print(f"{name}: {'as it was' if after == before else 'written anew'}")


@command
def main():
    Parser(__doc__).parse_args()
    write()


if __name__ == "__main__":
    main()
