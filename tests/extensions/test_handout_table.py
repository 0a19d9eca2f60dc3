"""Every command of the table "From the handout to here" is one that its program takes."""

import re
import runpy
import shlex
import sys

import pytest

from engine.errors import Parser
from engine.extension import load_extensions
from engine.files import ROOT

TEXT = (ROOT / "extensions" / "README.md").read_text(encoding="utf-8")
TABLE = TEXT.partition("## From the handout to here")[2].partition("\n## ")[0]
ROWS = [line.split(" | ") for line in TABLE.splitlines() if " | `python " in line]


class Parsed(Exception):
    """Carries the flags that a program has read."""


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip("| ") for row in ROWS])
def test_its_file_is_there_and_its_program_takes_the_command(row, monkeypatch):
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", row[1]):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "extensions")), name
    [command] = re.findall(r"`(python .*)`", row[2])
    parse = Parser.parse_known_args

    def parse_and_stop(parser, *args, **options):
        known, unknown = parse(parser, *args, **options)
        raise Parsed(known, unknown)

    monkeypatch.setattr(Parser, "parse_known_args", parse_and_stop)
    monkeypatch.chdir(ROOT)
    _, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
    with pytest.raises(Parsed) as parsed:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    flags, unknown = parsed.value.args
    assert unknown == []
    load_extensions(getattr(flags, "extension", []))


def test_there_is_a_row_for_each_method_that_the_handout_names():
    methods = "LoRA|ReFT|DPO|FlashAttention|sliding-window|sinks|Triton|int8|bfloat16|GPTQ"
    methods += "|novel task|time and utility|level of quantization|Quadapter|K-FAC|Shampoo|SOAP"
    methods += "|smoothness|Bregman|dropout|ensembling|search"
    assert [m for m in methods.split("|") if not any(m in row[0] for row in ROWS)] == []


def test_every_row_of_the_page_has_as_many_cells_as_its_head():
    for table in re.findall(r"(?:^ *\|.*\n)+", TEXT, flags=re.MULTILINE):
        cells = [len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(cells)) == 1, table
