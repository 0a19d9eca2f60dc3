"""Draw the figures of course/handout.md: `python -m course.handout.figures`."""

from engine.errors import Parser, command

# isort: split

from collections.abc import Callable

from course.handout.sketch import BLUE, GREEN, ORANGE, PALE, VIOLET, Sketch, write
from engine.files import ROOT

FOLDER = ROOT / "course" / "figures"
WORDS = ("To", "be", "or", "not")


def embedding() -> Sketch:
    """Token and position embeddings, added."""
    sketch = Sketch(15, 8.2)
    rows = [(5.9, "token embedding", "E", BLUE), (4.3, "position embedding", "P", GREEN)]
    for x, (position, word) in zip((4.4, 7.0, 9.6, 12.2), enumerate(WORDS), strict=True):
        sketch.box(x, 7.2, 2, 0.8, word, fill="none", size=11)
        sketch.arrow((x + 1, 7.2), (x + 1, 6.75))
        for y, _, letter, fill in rows:
            index = word if letter == "E" else position
            sketch.box(x, y, 2, 0.85, f"{letter}[{index}]", fill=fill)
        sketch.words(x + 1, 5.52, "+", 13)
        sketch.arrow((x + 1, 4.3), (x + 1, 3.55))
        sketch.arrow((x + 1, 2.7), (x + 1, 1.95))
        sketch.box(x, 1.1, 2, 0.85, f"$x_{position}$", fill=VIOLET, size=12)
    sketch.box(4.4, 2.7, 9.8, 0.85, "dropout", fill=ORANGE)
    labels = [(7.6, "tokens"), (6.32, "token embedding"), (4.72, "position embedding")]
    for y, label in [*labels, (3.12, "dropped in training"), (1.52, "into the first layer")]:
        sketch.words(4.0, y, label, align="right")
    sketch.words(9.3, 0.5, "each vector has d numbers", 9, PALE)
    return sketch


def sublayer(sketch: Sketch, bottom: float, parts: list[tuple[str, str]]) -> float:
    """Boxes from below upwards, and the way around them; returns the top of the sum."""
    x, y = 3.2, bottom
    sketch.arrow((6.2, bottom - 0.5), (6.2, bottom))
    for words, fill in parts:
        sketch.box(x, y, 6, 0.85, words, fill=fill)
        sketch.arrow((6.2, y + 0.85), (6.2, y + 1.25))
        y += 1.25
    sketch.circle(6.2, y + 0.3)
    sketch.arrow((6.2, bottom - 0.35), (10.2, bottom - 0.35), (10.2, y + 0.3), (6.5, y + 0.3))
    return y + 0.6


def layer() -> Sketch:
    """Two sublayers, each added to its own input."""
    sketch = Sketch(12.6, 14)
    sketch.words(6.2, 0.35, "hidden states (b, t, d)")
    first = [("attention_layer_norm", GREEN), ("self_attention", BLUE)]
    first += [("attention_dense", VIOLET), ("attention_dropout", ORANGE)]
    top = sublayer(sketch, 1.2, first)
    second = [("out_layer_norm", GREEN), ("interm_dense, interm_af", VIOLET)]
    second += [("out_dense", VIOLET), ("out_dropout", ORANGE)]
    top = sublayer(sketch, top + 0.6, second)
    sketch.arrow((6.2, top), (6.2, top + 0.55))
    sketch.words(6.2, top + 0.85, "hidden states (b, t, d), to the next layer")
    sketch.words(10.45, 3.9, "unchanged", 9, PALE, align="left")
    sketch.words(10.45, 10.1, "unchanged", 9, PALE, align="left")
    return sketch


def attention() -> Sketch:
    """Projections, heads, and the heads joined."""
    sketch = Sketch(15.4, 10.6)
    sketch.box(4.9, 9.6, 5.6, 0.8, "hidden states (b, t, d)", fill="none")
    for x, name in ((0.9, "query"), (5.6, "key"), (10.3, "value")):
        sketch.arrow((7.7, 9.6), (x + 2.1, 8.75))
        sketch.box(x, 7.9, 4.2, 0.85, name, fill=VIOLET)
        sketch.words(x + 2.25, 7.5, "split: (b, h, t, k)", 9, PALE, align="left")
        sketch.arrow((x + 2.1, 7.9), (x + 2.1, 7.05))
    for shift in (0.5, 0.25, 0.0):
        sketch.box(0.7 + shift, 2.9 + shift, 13.4, 3.6, fill=BLUE)
    sketch.words(1.1, 6.1, "each of h heads", 9, PALE, align="left")
    steps = [(1.1, r"$QK^\top / \sqrt{k}$", "scores (t, s)"), (4.3, "mask", "future, padding")]
    steps += [(7.5, "softmax", "rows sum to 1"), (10.7, "dropout, times $V$", "(t, k)")]
    for i, (x, words, below) in enumerate(steps):
        sketch.box(x, 4.3, 2.7, 1.1, words, fill=(VIOLET, ORANGE, GREEN, VIOLET)[i])
        sketch.words(x + 1.35, 3.75, below, 9)
        if i:
            sketch.arrow((x - 0.5, 4.85), (x, 4.85))
    sketch.arrow((7.7, 2.9), (7.7, 2.25))
    sketch.box(3.9, 1.4, 7.6, 0.85, "join the heads: (b, t, d), d = h k", fill=GREEN)
    sketch.arrow((7.7, 1.4), (7.7, 0.8))
    sketch.words(7.7, 0.5, "to attention_dense")
    return sketch


def mask() -> Sketch:
    """What each query sees, and its weights if all scores are equal."""
    sketch = Sketch(15.4, 7.6)
    words = [*WORDS, "pad"]
    for left, title in ((1.9, "added to the scores"), (9.7, "weights of equal scores")):
        sketch.words(left + 2.5, 7.1, title, bold=True)
        for i, word in enumerate(words):
            sketch.words(left + i + 0.5, 6.3, word, 9)
            sketch.words(left - 0.2, 5.4 - i, word, 9, align="right")
            for j in range(5):
                seen = j <= i and j < 4
                cell = "0" if seen else "−∞"
                if left > 5:
                    share = min(i + 1, 4)
                    cell = ("1" if share == 1 else f"1/{share}") if seen else "0"
                fill = GREEN if seen else ORANGE if j < 4 else VIOLET
                sketch.box(left + j, 4.9 - i, 1, 1, cell, fill=fill, size=10, rounding=0.001)
    sketch.words(0.5, 3.4, "queries", 9, PALE)
    sketch.axes.texts[-1].set_rotation(90)
    sketch.words(4.4, 0.5, "keys: seen, later (orange), padding (violet)", 9, PALE)
    sketch.words(12.2, 0.5, "a row sums to 1", 9, PALE)
    return sketch


def flow() -> Sketch:
    """From a data file to a submission."""
    sketch = Sketch(15.6, 6)
    top = [("file", "data/*.csv, *.txt"), ("tokens", "tokenized once"), ("batch", "(b, t), padded")]
    top += [("model", "GPT-2 and head"), ("loss", "cross-entropy")]
    for i, (name, below) in enumerate(top):
        x = 0.4 + 3.05 * i
        sketch.box(x, 3.6, 2.5, 1, name, fill=(GREEN, GREEN, GREEN, BLUE, VIOLET)[i], size=11)
        sketch.words(x + 1.25, 3.2, below, 8.5, PALE)
        if i:
            sketch.arrow((x - 0.55, 4.1), (x, 4.1))
    sketch.arrow((13.85, 4.6), (13.85, 5.3), (10.8, 5.3), (10.8, 4.6))
    sketch.words(12.3, 5.6, "gradient, AdamW.step", 9)
    sketch.arrow((10.8, 2.95), (10.8, 2.05))
    sketch.words(11.0, 2.5, "the dev set chooses", 9, align="left")
    bottom = [(9.55, "best epoch", "runs/"), (6.5, "predictions", "predictions/")]
    for x, name, below in [*bottom, (3.45, "submission", "prepare_submit.py")]:
        sketch.box(x, 1.05, 2.5, 1, name, fill=ORANGE, size=11)
        sketch.words(x + 1.25, 0.65, below, 8.5, PALE)
    sketch.arrow((9.55, 1.55), (9.0, 1.55))
    sketch.arrow((6.5, 1.55), (5.95, 1.55))
    return sketch


FIGURES: dict[str, Callable[[], Sketch]] = {
    function.__name__: function for function in (embedding, layer, attention, mask, flow)
}


@command
def main(argv=None):
    Parser(__doc__).parse_args(argv)
    for name, draw in FIGURES.items():
        write(draw(), FOLDER / f"{name}.svg")
    print(f"{FOLDER}: {', '.join(FIGURES)}")


if __name__ == "__main__":
    main()
