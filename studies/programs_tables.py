"""Tables of the study of programs: a row for each contestant, compared with plain."""

from statistics import mean

from studies.study import mean_and_spread

PLAIN = "plain"
FORMATS = {
    "dev_acc": ".3f",
    "dev_perplexity": ".1f",
    "chrf": ".1f",
    "lines_14_share": ".2f",
    "distinct_2": ".3f",
    "megabytes": ".1f",
    "speed": ".2f",
    "lr": ".1e",
    "hidden_dropout_prob": ".2f",
}
COMPARED = list(FORMATS)[:5]  # with plain


def tables(runs: dict[str, float], orders: dict[str, list[str]]) -> str:
    """Markdown, a table for each question and task. orders: of a question's contestants."""
    figures = by_place(runs)
    places = sorted(figures, key=lambda place: list(orders).index(place[0]))
    return "\n\n".join(one_table(*place, figures[place], orders[place[0]]) for place in places)


def by_place(runs: dict[str, float]) -> dict[tuple[str, str], dict]:
    """(question, task) -> contestant -> metric -> seeds -> figure."""
    places: dict[tuple[str, str], dict] = {}
    for key, value in runs.items():
        question, task, contestant, seeds, metric = key.split(", ")
        metrics = places.setdefault((question, task), {}).setdefault(contestant, {})
        metrics.setdefault(metric, {})[seeds.removeprefix("seed ")] = value
    return places


def one_table(question: str, task: str, figures: dict[str, dict], order: list[str]) -> str:
    """Of one question and task; figures: contestant -> metric -> seeds -> figure."""
    metrics = [name for name in FORMATS if any(name in each for each in figures.values())]
    columns = [f"{question}: {task}"]
    for metric in metrics:
        columns += [metric.replace("_", " "), *["against plain"] * (metric in COMPARED)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rank = {contestant: order.index(contestant) for contestant in order}
    for contestant in sorted(figures, key=lambda name: rank.get(name, len(rank))):
        cells = [contestant]
        for metric in metrics:
            values, spec = figures[contestant].get(metric, {}), FORMATS[metric]
            cells.append(mean_and_spread(list(values.values()), spec) if values else "–")
            if metric in COMPARED:
                plain = figures.get(PLAIN, {}).get(metric, {})
                cells.append("–" if contestant == PLAIN else against(values, plain, spec))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def against(values: dict[str, float], plain: dict[str, float], spec: str) -> str:
    """Differences to plain; for several seeds together, to the mean of each one's plain figure."""
    differences = []
    for seeds, value in values.items():
        if not set(seeds.split("+")) <= plain.keys():
            return "–"
        differences.append(value - mean(plain[seed] for seed in seeds.split("+")))
    return mean_and_spread(differences, spec, "+") if differences else "–"


def quantized_brief(results: dict) -> str:
    """Markdown: dev perplexity and size of the sonnets' checkpoint, a column a kind of integers."""
    contestants = by_place(results["runs"])["quantize", "sonnet"]
    lines = [f"| | {' | '.join(contestants)} |", "|---" * (len(contestants) + 1) + "|"]
    for metric in ("dev_perplexity", "megabytes"):
        values = [list(figures[metric].values()) for figures in contestants.values()]
        cells = [f"{mean(each):.1f}" for each in values]
        lines.append(f"| {metric.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)
