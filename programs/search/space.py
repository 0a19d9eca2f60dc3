"""A space of flags: what each trial of a search puts on a task's command line.

    NAME=A,B,C              one of these values of --NAME: batch_size=8,16,32
    NAME=on,off             a switch, given or not: bf16=on,off
    NAME=LOW..HIGH          evenly, whole numbers if both ends are: hidden_dropout_prob=0.0..0.5
    NAME=log:LOW..HIGH      evenly in the logarithm (LOW:HIGH, too): lr=log:1e-5..1e-3
    extension=E|E|…         one of these extensions, or none, with options drawn in turn:
                            'extension=none|muon|lora:rank=4..64,alpha=16,32'

An `extension` may stand several times: each adds one. Numbers between ends are rounded to three
digits. `trial` is whatever has optuna's suggest_categorical, suggest_int and suggest_float.
"""

import re
from dataclasses import dataclass, field

from engine.errors import InputError

NONE = "none"
GRAMMAR = "expected A,B,C or LOW..HIGH or log:LOW..HIGH"


@dataclass(frozen=True)
class Values:
    """The values of a flag or an option: choices, or the numbers between two ends."""

    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial, name: str) -> str:
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(name, self.low, self.high, log=self.log):.3g}"


@dataclass(frozen=True)
class Flag:
    name: str
    values: Values

    def words(self, trial) -> list[str]:
        value = self.values.suggest(trial, self.name)
        if value in ("on", "off"):
            return [f"--{self.name}"] if value == "on" else []
        return [f"--{self.name}", value]


@dataclass(frozen=True)
class Extensions:
    """Alternatives, each with the values of its options; their parameters are `key.option`."""

    key: str
    options: dict[str, dict[str, Values]] = field(hash=False)

    def words(self, trial) -> list[str]:
        name = trial.suggest_categorical(self.key, list(self.options))
        if name == NONE:
            return []
        drawn = {
            option: values.suggest(trial, f"{self.key}.{name}.{option}")
            for option, values in self.options[name].items()
        }
        listed = ",".join(f"{option}={value}" for option, value in drawn.items())
        return ["--extension", f"{name}:{listed}" if listed else name]


Space = list[Flag | Extensions]


def words_of(space: Space, trial) -> list[str]:
    return [word for part in space for word in part.words(trial)]


def parse_space(entries: list[str]) -> Space:
    """The parts of --space."""
    space: Space = []
    for entry in entries:
        name, equals, text = entry.partition("=")
        name = name.lstrip("-")
        if not name or not equals or not text:
            raise InputError(f"--space {entry!r}: expected NAME=VALUES, such as lr=log:1e-5..1e-3")
        if name == "extension":
            count = sum(isinstance(part, Extensions) for part in space)
            key = name if count == 0 else f"{name}{count + 1}"
            space.append(Extensions(key, _parse_extensions(text, entry)))
        elif any(isinstance(part, Flag) and part.name == name for part in space):
            raise InputError(f"--space {entry!r}: {name} stands twice: give it once")
        else:
            space.append(Flag(name, _parse_values(text, entry)))
    return space


def _parse_extensions(text: str, entry: str) -> dict[str, dict[str, Values]]:
    found: dict[str, dict[str, Values]] = {}
    for alternative in text.split("|"):
        name, _, listed = alternative.partition(":")
        if not name or name in found:
            raise InputError(f"--space {entry!r}: extension {name!r} is empty or stands twice")
        options: dict[str, str] = {}
        for part in filter(None, listed.split(",")):
            option, equals, value = part.partition("=")
            if equals:
                options[option] = value
            elif options:  # a further choice of the option before
                options[list(options)[-1]] += f",{part}"
            else:
                raise InputError(f"--space {entry!r}: {part!r}, expected OPTION=VALUES")
        found[name] = {option: _parse_values(value, entry) for option, value in options.items()}
    return found


def _parse_values(text: str, entry: str) -> Values:
    log, ends = text.startswith("log:"), text.removeprefix("log:")
    parts = re.split(r"\.\.|:", ends) if log else ends.split("..")
    if not log and len(parts) == 1:
        choices = tuple(text.split(","))
        if not all(choices) or len(set(choices)) < len(choices):
            raise InputError(f"--space {entry!r}: a choice is empty or stands twice: {GRAMMAR}")
        return Values(choices=choices)
    try:
        low, high = map(float, parts)
    except ValueError as error:
        raise InputError(f"--space {entry!r}: {text!r}: {GRAMMAR}") from error
    if not (low < high < float("inf")) or (log and low <= 0):
        raise InputError(
            f"--space {entry!r}: from {low:g} to {high:g}: expected the smaller end first"
            f"{', and above 0' if log else ''}"
        )
    whole = all(re.fullmatch(r"[+-]?\d+", part) for part in parts)
    return Values(low=low, high=high, log=log, whole=whole)


class Probe:
    """A trial that takes the nth choice and an end of each range, by which a space is tried out."""

    def __init__(self, number: int):
        self.number = number

    def suggest_categorical(self, name: str, choices: list):
        return choices[min(self.number, len(choices) - 1)]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return high if self.number % 2 else low

    suggest_float = suggest_int


def probes(space: Space) -> list[Probe]:
    """As many as bring every choice at least once."""
    longest = 2
    for part in space:
        if isinstance(part, Extensions):
            values = [v for options in part.options.values() for v in options.values()]
            longest = max(longest, len(part.options), *(len(v.choices) for v in values), 0)
        else:
            longest = max(longest, len(part.values.choices))
    return [Probe(number) for number in range(longest)]
