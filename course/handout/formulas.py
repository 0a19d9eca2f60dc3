"""Formulas as SVG: matplotlib's mathtext as outlines, in the colour and size of the text around."""

import html
import re

SIZE = 10.0  # points that one em of the page stands for


def formula(tex: str, *, block: bool = False) -> str:
    r"""An <svg> of a formula in TeX, as far as mathtext knows it; it stands on the text's baseline.

    Every reader without pictures gets the TeX itself, as the label.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from matplotlib.textpath import TextPath

    properties = FontProperties(size=SIZE, math_fontfamily="cm")
    source = f"${tex}$"
    width, height, depth, *_ = MathTextParser("path").parse(source, dpi=72, prop=properties)
    path = TextPath((0, 0), source, prop=properties)
    outline = _outline(path.vertices, path.codes)
    box = f"{-0.1:g} {-(height - depth):.2f} {width + 0.2:.2f} {height:.2f}"
    style = "" if block else f" style='vertical-align:{-depth / SIZE:.3f}em'"
    kind = "block" if block else "inline"
    return (
        f"<svg class='formula {kind}' role='img' aria-label='{html.escape(tex, quote=True)}' "
        f"width='{(width + 0.2) / SIZE:.3f}em' height='{height / SIZE:.3f}em' "
        f"viewBox='{box}'{style}><path fill='currentColor' d='{outline}'/></svg>"
    )


def _outline(vertices, codes) -> str:
    """The path data of SVG, whose y grows downwards."""
    letters = {1: "M", 2: "L", 3: "Q", 4: "C"}
    points = {1: 1, 2: 1, 3: 2, 4: 3}
    parts, i = [], 0
    while i < len(codes):
        code = int(codes[i])
        if code == 79:  # CLOSEPOLY
            parts.append("Z")
            i += 1
            continue
        pairs = [f"{x:.2f} {-y:.2f}" for x, y in vertices[i : i + points[code]]]
        parts.append(letters[code] + " ".join(pairs))
        i += points[code]
    return re.sub(r"\.?0+(?=[ A-Z]|$)", "", "".join(parts))
