"""What a run was asked for: its flags, frozen once they are parsed."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence


class Settings(Namespace):
    """Flags, and what a model is built from; read as attributes, or all together by vars().

    They never change: `replace` gives other ones. A run's folder is named by those that differ from
    the flags' defaults, so that a new flag leaves old runs their names; a checkpoint stores all.
    """

    __slots__ = ("defaults",)  # beside the values, which vars() shows

    def __init__(self, values: Mapping, defaults: Mapping | None = None):
        vars(self).update(values)
        object.__setattr__(self, "defaults", dict(defaults or {}))

    def __setattr__(self, name: str, value):
        raise AttributeError(f"settings are frozen: use replace({name}=…)")

    @classmethod
    def parse(cls, parser: ArgumentParser, argv: Sequence[str] | None = None) -> "Settings":
        """A command line's flags; errors as the parser reports them."""
        values = vars(parser.parse_args(argv))
        return cls(values, {name: parser.get_default(name) for name in values})

    def replace(self, **changes) -> "Settings":
        return Settings(vars(self) | changes, self.defaults)

    def changed(self) -> dict:
        """What differs from the defaults, and what is no flag."""
        missing = object()
        values = vars(self).items()
        return {name: value for name, value in values if self.defaults.get(name, missing) != value}
