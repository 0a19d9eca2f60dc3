"""What `--help` shows: a program's first sentence, every default, and its docstring's commands.

A command begins a line of the docstring, `python …`, and goes on after a backslash; without one,
the first between backticks serves.
"""

import argparse
import copy
import inspect
import re

COMMAND = re.compile(r"^ *((?:python|torchrun) (?:.*\\\n)*.*)", re.MULTILINE)
QUOTED = re.compile(r"`((?:python|make) [^`]+)`")
EMPTY = (None, False, "", argparse.SUPPRESS)


def summary(doc: str) -> str:
    """The first line of a docstring, without a command in it."""
    line = doc.strip().partition("\n")[0]
    return re.sub(r": `[^`]+`\.$", ".", line)


def examples(doc: str) -> str:
    """The commands of a docstring under a heading; "" without any."""
    found = COMMAND.findall(inspect.cleandoc(doc)) or QUOTED.findall(doc)[:1]
    commands = [re.sub(r"\n *", "\n      ", command) for command in found]
    heading = "example" if len(commands) == 1 else "examples"
    return "\n  ".join([f"{heading}:", *commands]) if commands else ""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds each default that its flag's help does not name."""

    def _format_action(self, action):
        shown = copy.copy(action)
        shown.help = with_default(action)
        return super()._format_action(shown)


def with_default(action: argparse.Action) -> str | None:
    """A flag's help with its default, where it has one that can be shown."""
    text, default = action.help, action.default
    empty = isinstance(default, list | tuple) and not default
    if action.nargs == 0 or empty or any(default is value for value in EMPTY):
        return text
    if text is argparse.SUPPRESS or "default" in (text or ""):
        return text
    default = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    said = f"default: {shown}".replace("%", "%%")
    return f"{text}; {said}" if text and ":" in text else f"{text} ({said})" if text else said
