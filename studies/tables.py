"""Tables of the pages, in Markdown: mean ± standard deviation over seeds, and answers in words."""

from math import isfinite
from statistics import mean, stdev

from studies.data import FULL, QUARTER
from studies.entries import Study, load, metric_of
from studies.figures import answer, differences, figures_of, interval, values

FORMATS = {
    "dev_acc": ".3f",
    "dev_loss": ".3f",
    "train_loss": ".3f",
    "steps": ".0f",
    "seconds": ".0f",
    "reward": ".3f",
    "rhyme": ".3f",
    "dev_perplexity": ".1f",
    "chrf": ".1f",
    "lines_14_share": ".2f",
    "distinct_2": ".3f",
    "accepted": ".2f",
    "megabytes": ".1f",
    "speed": ".2f",
    "lr": ".1e",
    "hidden_dropout_prob": ".2f",
}
NOT_COMPARED = ("dev_loss", "accepted", "megabytes", "speed", "lr", "hidden_dropout_prob")
COSTS = ("steps", "seconds")
NONE, NOT_YET = "–", "not measured"
SHARES = {FULL: "all", QUARTER: "a quarter"}  # of SST's sentences


def mean_and_spread(found: list[float], spec: str, sign: str = "") -> str:
    """Mean ± standard deviation, both in a format such as ".3f"; sign: the mean's, "+" or ""."""
    if not all(map(isfinite, found)):
        return "not reached"
    spread = f" ± {stdev(found):{spec}}" if len(found) > 1 else ""
    return f"{mean(found):{sign}{spec}}{spread}"


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def difference(study: Study, table, name: str, metric: str = "") -> str:
    """Mean ± standard deviation of what a contestant adds to the baseline; "–" if unknown."""
    metric = metric or study.figure
    base = values(table, study.baseline, metric)
    found = values(table, name, metric)
    added = differences(found, base) if name != study.baseline else []
    return mean_and_spread(added, FORMATS[metric], "+") if added else NONE


def of_suite(suite: str) -> list[Study]:
    return load(suite=suite)


# -- a suite's own table ---------------------------------------------------------------------------


def pretraining(records: list[dict]) -> str:
    """A row a task, a column a start."""
    names = ["bag of words", "random weights", "gpt2-mini"]
    rows = [["task", *names]]
    for study in of_suite("pretraining"):
        table, spec = figures_of(study, records), FORMATS[study.figure]
        found = [list(values(table, name, study.figure).values()) for name in names]
        cells = [mean_and_spread(each, spec) if each else NONE for each in found]
        rows.append([f"{study.task}, {metric_of(study.task).replace('_', ' ')}", *cells])
    return markdown(rows)


def techniques_brief(records: list[dict]) -> str:
    """A row a study: the techniques by the answer to its question, with what they add to plain."""
    names = ["better", "can't tell", "worse"]
    rows = [["sentences", *names]]
    for study in of_suite("techniques"):
        table = figures_of(study, records)
        base = values(table, study.baseline, study.figure)
        groups: dict[str, list[str]] = {name: [] for name in names}
        for one in study.contestants[1:]:
            added = differences(values(table, one.name, study.figure), base)
            if added:
                said = answer(study, one, study.figure, added)
                name = {"yes": "better", "no": "worse"}.get(said, "can't tell")
                groups[name].append(f"`{one.name}` {mean(added):+.3f}")
        rows.append([SHARES[study.data], *(", ".join(g) or NONE for g in groups.values())])
    return markdown(rows)


def technique_results(records: list[dict]) -> dict[str, str]:
    """What each technique adds to SST's dev accuracy, by its flag."""
    found = {}
    for study in of_suite("techniques"):
        table = figures_of(study, records)
        for one in study.contestants[1:]:
            added = difference(study, table, one.name)
            part = "" if study.data == FULL or added == NONE else f" on {SHARES[study.data]}"
            found[one.name] = added + part
    return found


def one_by_one(suite: str, records: list[dict]) -> str:
    """A table for each study of a suite."""
    return "\n\n".join(one_table(study, records) for study in of_suite(suite))


def one_table(study: Study, records: list[dict]) -> str:
    """A row a contestant: its figures, and of those that matter what it adds to the baseline."""
    table = figures_of(study, records)
    metrics = [name for name in FORMATS if name in table] or [study.figure]
    columns = [study.name.replace("-", ": ", 1)]
    for metric in metrics:
        compared = [] if metric in NOT_COMPARED else [f"against {study.baseline}"]
        columns += [metric.replace("_", " "), *compared]
    rows = [[*columns, *study.reference]]
    for one in study.contestants:
        cells = [one.name + rate_of(table, one.name)]
        for metric in metrics:
            found = list(values(table, one.name, metric).values())
            empty = NONE if values(table, one.name, study.figure) else NOT_YET
            cells.append(mean_and_spread(found, FORMATS[metric]) if found else empty)
            if metric not in NOT_COMPARED:
                cells.append(difference(study, table, one.name, metric))
        said = [figures.get(one.name, NONE) for figures in study.reference.values()]
        rows.append([*cells, *map(str, said)])
    return markdown(rows)


def rate_of(table, name: str) -> str:
    """The rate that a contestant kept, in brackets; nothing where it had no choice."""
    rates = table[table["contestant"] == name]["rate"].dropna()
    return f" (lr {rates.iloc[0]:g})" if len(rates) else ""


def quantized_brief(records: list[dict]) -> str:
    """Dev perplexity and size of the sonnets' checkpoint, a column a kind of integers."""
    [study] = [each for each in of_suite("programs") if each.name == "quantize-sonnet"]
    table = figures_of(study, records)
    names = [one.name for one in study.contestants]
    rows = [["", *names]]
    for metric in ("dev_perplexity", "megabytes"):
        means = [mean(values(table, name, metric).values()) for name in names]
        rows.append([metric.replace("_", " "), *(f"{value:.1f}" for value in means)])
    return markdown(rows)


# -- answers ---------------------------------------------------------------------------------------


def answers(suite: str, records: list[dict]) -> str:
    """A row a question: its answer by the 95 % interval of the difference to the baseline."""
    rows = [["question", "answer", "difference, 95 % interval"]]
    for study in of_suite(suite):
        table = figures_of(study, records)
        for metric in COSTS if study.steps_per_epoch else [study.figure]:
            base = values(table, study.baseline, metric)
            for one in study.contestants:
                if one.name == study.baseline:
                    continue
                found = values(table, one.name, metric)
                added = differences(found, base)
                question = study.question.format(f"`{one.name}`", cost=metric)
                said = answer(study, one, metric, added)
                if found and base and not added:
                    said = f"can't tell: {study.baseline} has no run with this seed"
                rows.append([question, said, _span(added, metric)])
    return markdown(rows)


def _span(added: list[float], metric: str) -> str:
    if not added:
        return NONE
    if not all(map(isfinite, added)):
        return "not reached"
    low, high = interval(added)
    spec = FORMATS[metric]
    span = f" ({low:+{spec}} to {high:+{spec}})" if isfinite(low) else ""
    return f"{mean(added):+{spec}}{span}"
