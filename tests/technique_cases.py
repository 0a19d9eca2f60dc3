"""With which options the contract tests try each technique: what test modules declare as TRIED.

TRIED = {"soap": Tried(varied=["every=2,beta1=0.8,beta2=0.7,max_dim=32"])}
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.extension import Extension, load_extensions, techniques

FOLDER = Path(__file__).resolve().parent / "extensions"
# Loggers act on nothing: test_loggers.py.
NAMES = [name for name in techniques() if not name.startswith("log_")]


def those_whose(condition: Callable[[Extension], bool]) -> list[str]:
    """The techniques that a condition holds for, loaded with their default options."""
    return [name for name in NAMES if condition(load_extensions([name])[0])]


@dataclass(frozen=True)
class Tried:
    """options, lr: with which a tiny model learns in a few epochs; varied: further options.

    Together the varied ones change every option that the technique has. refused: those of them
    that a task does not take, by (options, task), and what is said.
    """

    options: str = ""
    lr: str = "1e-2"
    varied: list[str] = field(default_factory=list)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)


def cases() -> dict[str, Tried]:
    """Those of every technique, declared or default. Imports the modules of tests/extensions/."""
    declared: dict[str, Tried] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        if re.search(r"^TRIED = ", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            declared |= importlib.import_module(path.stem).TRIED
    return {name: declared.get(name, Tried()) for name in NAMES}
