"""The page: what `report.py` found, put into a template that escapes all that is text."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from programs.decoding import verse_marks

TEMPLATES = Path(__file__).parent / "templates"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def figure(value) -> str:
    """A figure of a run: a count as it is, everything else with three decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def render(**found) -> str:
    """One HTML file that needs no other one, and no script."""
    pages = Environment(
        loader=FileSystemLoader([TEMPLATES, verse_marks.TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"share": share, "figure": figure, "duration": duration, "drawing": Markup}
    return pages.get_template("report.html").render(**found)
