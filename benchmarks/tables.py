"""Write the measured tables of README.md, docs/results.md and extensions/README.md.

    python benchmarks/tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. The list of techniques in
extensions/README.md is written by hand but for its last two columns, cost and result.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command
from engine.files import ROOT, atomic_write

# isort: split

from benchmarks import (
    core,
    extension_tables,
    extensions,
    pretrain,
    report,
    scaling_curves,
    storm_table,
)
from benchmarks.provenance import described
from studies import pretraining_pays, programs_help, programs_tables, techniques_help

RESULTS = [ROOT / folder / "results" for folder in ("benchmarks", "studies")]
IN_README = ("sst-8", "paraphrase-64", "head", "sonnets-8", "decode", "step")  # one of each kind
# page -> a table's name -> the results file that it is made of, and how
TABLES: dict[str, dict[str, tuple[str, Callable[[dict], str]]]] = {
    "README.md": {
        "core_ratios": ("core", lambda results: report.ratio_table(results, IN_README)),
        "pretraining_pays": ("pretraining_pays", pretraining_pays.table),
        "techniques_brief": ("techniques_help", techniques_help.brief),
        "quantized_brief": ("programs_help", programs_tables.quantized_brief),
    },
    "docs/results.md": {
        "core": ("core", core.table),
        "core_memory": ("core", report.memory_table),
        "gpu": ("gpu", core.table),
        "core-bf16": ("core-bf16", core.table),
        "core-compiled": ("core-compiled", core.table),
        "scaling": ("scaling", scaling_curves.table),
        "pretraining_pays": ("pretraining_pays", pretraining_pays.table),
        "pretrain": ("pretrain", pretrain.table),
        "storm": ("storm", storm_table.table),
    },
    "extensions/README.md": {
        "sizes": (
            "extensions",
            lambda parts: extension_tables.step_table(parts["sizes"]["figures"]),
        ),
        "attention": (
            "extensions",
            lambda parts: extension_tables.attention_table(parts["attention"]["figures"]),
        ),
        "techniques_help": ("techniques_help", techniques_help.table),
        "programs_help": ("programs_help", programs_help.table),
    },
}
WITHOUT_COMMITS = "README.md"  # it sends to the other pages for these
WITH_CELLS = "extensions/README.md"
NOT_YET = "not measured yet"


def results_of(file: str) -> dict:
    [path] = [path for folder in RESULTS if (path := folder / f"{file}.json").exists()]
    return json.loads(path.read_text(encoding="utf-8"))


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
    """What each technique adds to SST's dev accuracy, as studies/techniques_help.py measured it."""
    runs = results_of("techniques_help")["runs"]
    cells = {}
    for flag in techniques_help.CONTESTANTS[1:]:
        added = techniques_help.difference(runs, "sst", flag)
        cells[flag] = NOT_YET if added == "–" else added
    return by_technique(cells)


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
        cells.setdefault(name, []).append(f"`{options}`: {text}" if options else text)
    return {name: "; ".join(parts) for name, parts in cells.items()}


@command
def main():
    Parser(description=__doc__.splitlines()[0]).parse_args()
    for name in TABLES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(name, before)
        if after != before:
            with atomic_write(path) as file:
                file.write(after)
        print(f"{name}: {'as it was' if after == before else 'written anew'}")


if __name__ == "__main__":
    main()
