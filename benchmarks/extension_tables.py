"""What `extensions.py` measured: Markdown tables, a technique's cost, and a picture."""

from engine.plots import picture

PLAIN = ""  # the name of a run without techniques
NOT_YET = "not measured yet"


def step_table(figures: dict[str, dict]) -> str:
    """Markdown: a row a case; ratios are to the plain case, of the same size where it has one."""
    lines = [
        "| | trained parameters | ms a step | time | peak MB | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, measured in figures.items():
        size, colon, flags = name.rpartition(": ")
        label = f"`{name}`" if flags else f"{name}plain"
        ms, mb = 1000 * measured["seconds"]["median"], measured["peak_mb"]
        time, memory = _ratios(measured, figures.get(size + colon))
        cells = f"{measured['trained']:,} | {ms:,.0f} | {time} | {mb:,.0f} | {memory}"
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


def memory_table(figures: dict[str, dict]) -> str:
    """Markdown: a row a case, with its parameters and memory alone."""
    lines = ["| | trained parameters | peak MB |", "|---|---|---|"]
    for name, measured in figures.items():
        lines.append(f"| `{name}` | {measured['trained']:,} | {measured['peak_mb']:,.0f} |")
    return "\n".join(lines)


def _ratios(measured: dict, plain: dict | None) -> tuple[str, str]:
    """Time and memory as multiples of the plain case's, "–" without one."""
    if plain is None:
        return "–", "–"
    time = measured["seconds"]["median"] / plain["seconds"]["median"]
    return f"{time:.2f}×", f"{measured['peak_mb'] / plain['peak_mb']:.2f}×"


def cost(figures: dict[str, dict], flags: str) -> str:
    """A technique's step against the plain one, in a few words, for a table of techniques."""
    if flags not in figures:
        return NOT_YET
    plain, measured = figures[PLAIN], figures[flags]
    time, memory = _ratios(measured, plain)
    text = f"time {time}, memory {memory}"
    if measured["trained"] == plain["trained"]:
        return text
    return f"{text}, trains {measured['trained'] / 1e6:.2f} M"


def attention_table(figures: dict[str, dict]) -> str:
    """Markdown: a row a length, a column a kind: milliseconds, and peak MB."""
    kinds = list(dict.fromkeys(key.split(": ")[0] for key in figures))
    lengths = list(dict.fromkeys(int(key.split(": ")[1]) for key in figures))
    lines = [f"| t | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for t in lengths:
        cells = [_attention_cell(figures.get(f"{kind}: {t}")) for kind in kinds]
        lines.append(f"| {t:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _attention_cell(measured: dict | None) -> str:
    if measured is None:
        return "–"
    milliseconds = 1000 * measured["seconds"]["median"]
    return f"{milliseconds:,.1f} ms, {measured['peak_mb']:,.0f} MB"


def draw(figures: dict[str, dict], path) -> None:
    """Time and memory of each kind of attention by length, both axes logarithmic."""
    with picture(path, 9, 3.5) as figure:
        left, right = figure.subplots(1, 2)
        for kind in dict.fromkeys(key.split(": ")[0] for key in figures):
            start = f"{kind}: "
            of_kind = {k.removeprefix(start): f for k, f in figures.items() if k.startswith(start)}
            lengths, points = list(map(int, of_kind)), of_kind.values()
            left.loglog(lengths, [f["seconds"]["median"] for f in points], "o-", label=kind)
            right.loglog(lengths, [f["peak_mb"] for f in points], "o-", label=kind)
        left.set(xlabel="positions", ylabel="seconds, forward and backward")
        right.set(xlabel="positions", ylabel="peak memory of the process, MB")
        left.legend()
