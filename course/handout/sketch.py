"""Boxes, arrows and words on a white sheet, written as an SVG file that is the same every time.

Colours are names of CSS variables, so that a picture follows the reader's light or dark mode.
"""

import io
import re
from itertools import pairwise
from pathlib import Path

from engine.files import atomic_write

INK, PALE = "#102030", "#708090"  # lines and words; what matters less
BLUE, ORANGE, GREEN, VIOLET = "#d0e0f0", "#f0e0d0", "#d0f0d8", "#e4d8f0"  # fills
LIGHT = {INK: "#1c2733", PALE: "#6b7785", BLUE: "#d6e6f7", ORANGE: "#fbe3cd", GREEN: "#d5efdb"}
LIGHT[VIOLET] = "#e6dcf5"
DARK = {INK: "#e4e9ee", PALE: "#98a4b0", BLUE: "#24425f", ORANGE: "#5e3f22", GREEN: "#25502f"}
DARK[VIOLET] = "#463566"
NAMES = {INK: "ink", PALE: "pale", BLUE: "blue", ORANGE: "orange", GREEN: "green", VIOLET: "violet"}
INCHES = 0.5  # of a unit
SETTINGS = {  # matplotlib's own fonts, whatever the user's settings are
    **{"font.family": ["DejaVu Sans"], "mathtext.fontset": "dejavusans"},
    **{"svg.fonttype": "path", "svg.hashsalt": "course"},
}


class Sketch:
    """A drawing of width × height units, with (0, 0) at the lower left."""

    def __init__(self, width: float, height: float):
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width * INCHES, height * INCHES))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(self, x, y, width, height, words="", fill=BLUE, size=10, rounding=0.12) -> None:
        """A box with its lower left corner at (x, y)."""
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={rounding}"
        patch = FancyBboxPatch((x, y), width, height, boxstyle=style, fc=fill, ec=INK, lw=1)
        self.axes.add_patch(patch)
        self.words(x + width / 2, y + height / 2, words, size)

    def words(self, x, y, words, size=10, color=INK, align="center", bold=False) -> None:
        weight = "bold" if bold else "normal"
        self.axes.text(
            x,
            y,
            words,
            size=size,
            color=color,
            ha=align,
            va="center",
            weight=weight,
            linespacing=1.3,
        )

    def arrow(self, *points, color=INK, head=True) -> None:
        """A line along the points, with a head at its end."""
        for start, end in pairwise(points):
            last = head and end is points[-1]
            style = "-|>,head_width=0.18,head_length=0.32" if last else "-"
            how = {"arrowstyle": style, "color": color, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
            self.axes.annotate("", xy=end, xytext=start, arrowprops=how)

    def circle(self, x, y, words="+", radius=0.3) -> None:
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), radius, fc=ORANGE, ec=INK, lw=1))
        self.words(x, y, words, 12)

    def svg(self) -> str:
        """The drawing as SVG; words are outlines of matplotlib's own font."""
        import matplotlib

        file = io.StringIO()
        with matplotlib.rc_context(SETTINGS):
            meta = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(file, format="svg", transparent=True, metadata=meta)
        return themed(file.getvalue())


def themed(svg: str) -> str:
    """The picture with each colour as a variable, of one value by day and another by night."""
    for color, name in NAMES.items():
        svg = svg.replace(color, f"var(--{name})")
    rules = [
        " ".join(f"--{NAMES[color]}: {value};" for color, value in values.items())
        for values in (LIGHT, DARK)
    ]
    style = f"svg {{ {rules[0]} }} @media (prefers-color-scheme: dark) {{ svg {{ {rules[1]} }} }}"
    head, end, body = svg.partition('<style type="text/css">')
    svg = f"{head}{end}{style} {body}"
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def write(sketch: Sketch, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(sketch.svg())
