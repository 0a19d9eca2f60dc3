"""What was measured by `core.py`, as Markdown tables and as a picture."""

from collections.abc import Sequence

from engine.plots import picture

COLORS = {
    "starter": "tab:gray",
    "transformers": "tab:orange",
    "transformers-bf16": "tab:red",
    "torch-fused": "tab:green",
    "ours-float32": "tab:olive",
    "ours-compiled": "tab:cyan",
    "ours-eager": "tab:pink",
}
OURS = "ours"


def peers_of(results: dict) -> list[str]:
    """All peers that have a time, ours last."""
    names = [name for row in results["jobs"] for name in row["seconds"]]
    return sorted(dict.fromkeys(names), key=lambda name: name == OURS)


def table(results: dict) -> str:
    """A row a job: medians (smallest–largest), and how many times as long as ours.

    Where the machine's limit was measured, ours also as a share of it.
    """
    names = peers_of(results)
    limited = any("limit" in row for row in results["jobs"])
    heads = [f"{name}, s" for name in names] + ["ours, of the limit"] * limited
    lines = [f"| job | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for row in results["jobs"]:
        cells = [_cell(row, name) for name in names]
        if limited:
            share = row.get("limit", {}).get("share", {}).get(OURS)
            cells.append(f"{share:.0%}" if share else "–")
        lines.append(f"| {row['job']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_table(results: dict, jobs: Sequence[str] = ()) -> str:
    """A row a job: how many times as long as ours the starter and transformers take.

    jobs: the names of those that are shown; by default all.
    """
    names = ("starter", "transformers")
    lines = [f"| job | {' | '.join(names)} |", "|---|---|---|"]
    for row in results["jobs"]:
        ratios = [ratio(row, name) if name in row["seconds"] else None for name in names]
        if any(ratios) and (not jobs or row["name"] in jobs):
            cells = [f"{value:.1f}×" if value else "–" for value in ratios]
            lines.append(f"| {row['job']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict, name: str) -> str:
    if name not in row["seconds"]:
        return row.get("skipped", {}).get(name, "–").split(":")[0]
    times = row["seconds"][name]
    digits = ".2f" if times["median"] >= 1 else ".3g"
    middle, least, most = (format(times[key], digits) for key in ("median", "min", "max"))
    times_ours = ratio(row, name)
    return f"{middle} ({least}–{most})" + (f" **{times_ours:.1f}×**" if times_ours else "")


def ratio(row: dict, name: str) -> float | None:
    """How many times as long as ours a peer took; None of ours itself."""
    times = row["seconds"]
    if name == OURS or name not in times or OURS not in times:
        return None
    return times[name]["median"] / times[OURS]["median"]


def memory_table(results: dict) -> str:
    """A row a job that has it: peak MB of each peer's process, or of its tensors on a GPU."""
    names = peers_of(results)
    lines = [f"| peak MB | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for row in results["jobs"]:
        peaks = row.get("peak_mb", {})
        if peaks:
            cells = [f"{peaks[name]:,.0f}" if name in peaks else "–" for name in names]
            lines.append(f"| {row['job']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def limit_table(results: dict) -> str:
    """A row a job: its work, the least time for it here, and the share that each peer reaches."""
    names = peers_of(results)
    heads = ["TFLOP", "GB", "least, s", *names]
    lines = [f"| job | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for row in results["jobs"]:
        limit = row.get("limit")
        if limit:
            least = "; ".join(f"{s:.3g} ({p})" for p, s in limit["seconds"].items())
            shares = limit["share"]
            cells = [f"{limit['flops'] / 1e12:,.3g}", f"{limit['bytes'] / 1e9:,.3g}", least]
            cells += [f"{shares[name]:.0%}" if name in shares else "–" for name in names]
            lines.append(f"| {row['job']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_table(results: dict) -> str:
    """A row a job and peer whose steps were looked at: where their time goes; "" without any."""
    lines = [
        "| job | peer | host, ms | in the step, ms | device, ms | busy, ms | launches | graphs | "
        "warm-up, s | recording, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ("host_ms", "step_host_ms", "device_ms", "busy_ms", "launches", "graphs")
    for row in results["jobs"]:
        for name, warm in row.get("warm_up", {}).items():
            step = row.get("steps", {}).get(name, {})
            cells = [format(step[key], ".3g") if key in step else "–" for key in keys]
            recorded = f"{warm['recording_seconds']:.2f} ({warm['recordings']:.0f})"
            if warm["seconds_a_turn"]:
                recorded += f", each turn {warm['seconds_a_turn']:.2f}"
            cells += [f"{warm['seconds']:.1f}", recorded if warm["recordings"] else "–"]
            lines.append(f"| {row['job']} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def machine_table(limits: dict) -> str:
    """What the limits are made of: rates by shape and precision, bandwidth."""
    precisions = list(limits["rates"])
    lines = [f"| GFLOP/s | {' | '.join(precisions)} |", "|---|" + "---|" * len(precisions)]
    for shape in limits["rates"][precisions[0]]:
        cells = [f"{limits['rates'][p][shape] / 1e9:,.0f}" for p in precisions]
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    traffic = ", ".join(f"{kind} {rate / 1e9:,.1f}" for kind, rate in limits["bandwidth"].items())
    return "\n".join([*lines, "", f"Memory, GB/s: {traffic}."])


def draw(results: dict, path) -> None:
    """How many times as long as ours each peer took: bars with their spread, a group a job."""
    names = [name for name in peers_of(results) if name != OURS]
    groups = [
        (row["job"], [(name, _spread(row, name)) for name in names if ratio(row, name)])
        for row in results["jobs"]
    ]
    groups = [(job, bars) for job, bars in groups if bars]
    height = 1.6 + sum(0.35 + 0.25 * len(bars) for _, bars in groups)
    with picture(path, 8, height) as figure:
        axes = figure.subplots()
        place, ticks = 0.0, []
        for _, bars in groups:
            ticks.append(place + (len(bars) - 1) / 2)
            for name, spread in bars:
                _bar(axes, place, name, spread)
                place += 1
            place += 0.8
        axes.axvline(1, color="tab:blue", linewidth=1.5)
        axes.set(xscale="log", xlabel="time as a multiple of ours (to the right ours is faster)")
        axes.set_yticks(ticks, [job for job, _ in groups], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        plain_numbers(axes.xaxis)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            figure.legend(
                handles.values(), handles.keys(), fontsize=8, loc="outside lower center", ncols=6
            )
        axes.set_title(f"{results['checkpoint']}, {results['hardware']}", fontsize=9)
        axes.grid(axis="x", alpha=0.3)


def _bar(axes, place: float, name: str, spread: list[float]) -> None:
    """A bar from 1 to the median ratio, with a whisker from the smallest to the largest."""
    low, middle, high = spread
    color = COLORS.get(name, "tab:purple")
    axes.barh(place, middle - 1, 0.85, left=1, color=color, alpha=0.85, label=name)
    reach = [[middle - low], [high - middle]]
    axes.errorbar(middle, place, xerr=reach, color="black", linewidth=1, capsize=2)
    text, at = f"{middle:.2g}×" if middle < 1 else f"{middle:.1f}×", max(high, 1)
    offset = {"xytext": (4, 0), "textcoords": "offset points"}
    axes.annotate(text, (at, place), **offset, va="center", fontsize=8)


def plain_numbers(axis) -> None:
    """1, 2, 5, 10 … on a logarithmic axis, without powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def _spread(row: dict, name: str) -> list[float]:
    """The smallest, the median and the largest ratio of a peer's time to ours."""
    theirs, ours = row["seconds"][name], row["seconds"][OURS]
    pairs = (("min", "max"), ("median", "median"), ("max", "min"))
    return [theirs[a] / ours[b] for a, b in pairs]
