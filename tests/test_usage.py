"""`--help` of every program ends well, shows an example of it, and every default."""

import ast
import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

from engine.errors import Parser
from engine.files import ROOT
from engine.help import examples, summary, with_default

FOLDERS = ("benchmarks", "course", "data", "programs", "studies")  # of programs for people


def is_program(path: Path) -> bool:
    """Whether a file says what it does when it is run, and reads a command line."""
    text = path.read_text(encoding="utf-8")
    runs = any(
        isinstance(n, ast.If) and "__main__" in ast.dump(n.test) for n in ast.parse(text).body
    )
    return runs and ("Parser(" in text or "get_args" in text or path.name == "__main__.py")


def programs() -> list[str]:
    paths = [*ROOT.glob("*.py"), *(path for f in FOLDERS for path in (ROOT / f).rglob("*.py"))]
    return sorted(str(path.relative_to(ROOT)) for path in paths if is_program(path))


def module_of(path: str) -> str:
    """The package of a `__main__.py`; of other files the file's name."""
    return ".".join(Path(path).parent.parts) if path.endswith("__main__.py") else Path(path).name


@pytest.fixture
def parsers(monkeypatch) -> list[Parser]:
    """Those that a program makes."""
    made, make = [], Parser.__init__

    def note(parser, *args, **options):
        make(parser, *args, **options)
        made.append(parser)

    monkeypatch.setattr(Parser, "__init__", note)
    return made


def help_of(path: str, monkeypatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", [path, *words, "--help"])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    printed, spec = io.StringIO(), path.endswith("__main__.py")
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        if spec:
            runpy.run_module(module_of(path), run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(path, run_name="__main__")
    assert stop.value.code in (0, None)
    return printed.getvalue()


@pytest.mark.parametrize("path", programs())
def test_help_has_an_example_and_every_default(path, parsers, monkeypatch):
    shown = help_of(path, monkeypatch)
    head, _, example = shown.rpartition("\nexample")
    name = module_of(path)
    assert re.search(rf"(python (-m )?\S*{re.escape(name.removesuffix('.py'))}|make )", example)
    flat = " ".join(head.split())
    for action in parsers[0]._actions:
        said = with_default(action)
        if said and said != action.help and action.option_strings:
            assert said.replace("%%", "%").split("default: ")[1] in flat, action.option_strings
        if action.option_strings and isinstance(action.default, int | float | str):
            assert action.nargs == 0 or action.default == "" or "default" in said


def test_a_command_of_the_docstring_is_an_example_with_its_further_lines():
    doc = "Adds: x.\n\n    python add.py 1 \\\n        2\n\nSays more: python is not one.\n"
    assert examples(doc) == "example:\n  python add.py 1 \\\n      2"
    assert summary(doc) == "Adds: x."
    assert examples("Adds: `python add.py`.") == "example:\n  python add.py"
    assert summary("Adds: `python add.py`.") == "Adds."
    assert examples("Adds.") == ""


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ({"default": 3, "type": int}, "default: 3"),
        ({"default": 1e-5, "help": "rate"}, "rate (default: 1e-05)"),
        ({"default": 0.0, "help": "0: none"}, "0: none; default: 0"),
        ({"default": ["a", "b"], "help": "names"}, "names (default: a b)"),
        ({"default": "x", "help": "default: by y"}, "default: by y"),
        ({"default": "50%", "help": "a share"}, "a share (default: 50%%)"),
        ({"help": "a file"}, "a file"),
        ({"action": "store_true", "help": "quick"}, "quick"),
        ({"default": [], "help": "names"}, "names"),
    ],
)
def test_a_default_is_added_where_help_does_not_say_it(flag, expected):
    assert with_default(Parser().add_argument("--flag", **flag)) == expected
