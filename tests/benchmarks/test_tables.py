"""The pages' tables are those of the results files, written between their marks."""

import pytest

from benchmarks import tables
from engine.errors import InputError
from engine.files import ROOT

PAGES = [name for name in tables.TABLES if (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_the_tables_of_the_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.filled(page, text) == text, "run python benchmarks/tables.py"


@pytest.mark.parametrize("file", [file for file, _ in tables.TABLES["docs/results.md"].values()])
def test_the_page_names_the_machine_of_each_table(file):
    hardware = tables.results_of(file)["hardware"].partition(")")[0]
    assert hardware in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_a_table_takes_the_place_between_its_marks():
    text = "before\n<!-- a -->\n| old |\n| older |\n<!-- /a -->\n\nafter\n"
    found = tables.with_tables(text, {"a": "| new |"})
    assert found == "before\n<!-- a -->\n\n| new |\n\n<!-- /a -->\n\nafter\n"
    assert tables.with_tables(found, {"a": "| new |"}) == found


@pytest.mark.parametrize("marks", ["", "<!-- a -->\n", 2 * "<!-- a -->\n<!-- /a -->\n"])
def test_a_table_without_one_place_is_refused(marks):
    with pytest.raises(InputError, match="no place for the table a"):
        tables.with_tables(f"text\n{marks}", {"a": "| new |"})


def test_costs_and_results_go_to_the_rows_of_their_techniques():
    text = (
        "| `one.py` | Hu, eq. 3 | `penalty` | `--extension one` | PEFT | 1× | better |\n"
        "| `two.py` | Li | `attend` | `--extension two` | the formula | 2× | – (same) |\n"
        "| `tool.py` | Wu | `python -m programs.tool` | by hand | helps |\n"
    )
    costs, results = {"one": "3×", "two": "4×", "tool": "5×"}, {"one": "worse", "tool": "none"}
    found = tables.with_cells(text, costs, results).splitlines()
    assert found[0].endswith("| PEFT | 3× | worse |")
    assert found[1].endswith("| the formula | 4× | – (same) |")
    assert found[2].endswith("| by hand | helps |")


def test_variants_of_a_technique_share_a_cell():
    said = {"lora": "a", "lora:dora=true": "b", "swa:start=3": "c"}
    assert tables.by_technique(said) == {"lora": "a; `dora=true`: b", "swa": "`start=3`: c"}
