"""Write the measured tables of README.md, docs/results.md and extensions/README.md.

    python benchmarks/tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. The list of techniques in
extensions/README.md is written by hand but for its last two columns, cost and result.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command
from engine.files import ROOT, atomic_write

# isort: split

from benchmarks import core, extensions, pretrain, report, scaling
from studies import pretraining_pays, programs_help, techniques_help

RESULTS = [ROOT / folder / "results" for folder in ("benchmarks", "studies")]
# a table's name -> the results file it is made of, and how
OF_README = {
    "core_ratios": ("core", report.ratio_table),
    "pretraining_pays": ("pretraining_pays", pretraining_pays.table),
}
OF_RESULTS = {
    "core": ("core", core.table),
    "core_memory": ("core", report.memory_table),
    "core-bf16": ("core-bf16", core.table),
    "core-compiled": ("core-compiled", core.table),
    "scaling": ("scaling", scaling.table),
    "pretraining_pays": ("pretraining_pays", pretraining_pays.table),
    "pretrain": ("pretrain", pretrain.table),
}
OF_EXTENSIONS = {
    "sizes": ("extensions", lambda found: extensions.step_table(found["sizes"]["figures"])),
    "attention": (
        "extensions",
        lambda found: extensions.attention_table(found["attention"]["figures"]),
    ),
    "techniques_help": ("techniques_help", techniques_help.table),
    "programs_help": ("programs_help", programs_help.table),
}
NOT_YET = "not measured yet"


def results_of(file: str) -> dict:
    [path] = [path for folder in RESULTS if (path := folder / f"{file}.json").exists()]
    return json.loads(path.read_text(encoding="utf-8"))


def made(tables: dict) -> dict[str, str]:
    """The tables by name, of today's files."""
    return {name: table(results_of(file)) for name, (file, table) in tables.items()}


def readme(text: str) -> str:
    """README.md with the tables of today's files."""
    return with_tables(text, made(OF_README))


def results_page(text: str) -> str:
    """docs/results.md with the tables of today's files."""
    return with_tables(text, made(OF_RESULTS))


def extensions_readme(text: str) -> str:
    """extensions/README.md with the tables, costs and results of today's files."""
    figures = results_of("extensions")["techniques"]["figures"]
    runs = results_of("techniques_help")["runs"]
    costs = by_technique({key: extensions.cost(figures, key) for key in extensions.TECHNIQUES[1:]})
    found = {
        who: techniques_help.difference(runs, "sst", who) for who in techniques_help.CONTESTANTS[1:]
    }
    found = by_technique({who: NOT_YET if said == "–" else said for who, said in found.items()})
    return with_cells(with_tables(text, made(OF_EXTENSIONS)), costs, found)


PAGES = {
    "README.md": readme,
    "docs/results.md": results_page,
    "extensions/README.md": extensions_readme,
}


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


def by_technique(said: dict[str, str]) -> dict[str, str]:
    """Name -> what is said of it, variants with their options before: {"lora:rank=4": "0.1"}."""
    cells: dict[str, list[str]] = {}
    for flags, words in said.items():
        name, _, options = flags.partition(":")
        cells.setdefault(name, []).append(f"`{options}`: {words}" if options else words)
    return {name: "; ".join(parts) for name, parts in cells.items()}


@command
def main():
    Parser(description=__doc__.splitlines()[0]).parse_args()
    for name, fill in PAGES.items():
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if after != before:
            with atomic_write(path) as file:
                file.write(after)
        print(f"{name}: {'as it was' if after == before else 'written anew'}")


if __name__ == "__main__":
    main()
