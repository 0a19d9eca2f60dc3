"""The figures of a study's runs as a table, and what a difference between contestants says.

A difference is taken seed by seed to the baseline's run with the same seed; a run of several seeds
together is compared with the mean of their own baselines. Its 95 % interval is Student's:
mean ± t(0.975, n − 1) s / √n over n seeds.
"""

from math import inf, isfinite, nan, sqrt
from statistics import mean, stdev

import pandas as pd

from studies.entries import Contestant, Study
from studies.plan import best_rate, plan

SEEDS, NO_SEED = "seeds", "none"


def figures_of(study: Study, records: list[dict]) -> pd.DataFrame:
    """A row a run at the rate that was kept: contestant, rate, seeds ("1+2") and each figure.

    A contestant of which a rate is still to be tried has no row.
    """
    done, due, _ = plan(study, records)
    first = study.seeds[:1]
    undecided = [run.contestant for run in due if run.lr and run.seeds == first]
    rows = []
    for one in study.contestants:
        if one in undecided:
            continue
        runs = [run for run, _ in done if run.contestant == one]
        tried = [run for run in runs if run.lr and run.seeds == first]
        rate = best_rate(study, tried, records) if tried else None
        for run, record in done:
            if run.contestant == one and run.lr == rate:
                seeds = "+".join(map(str, run.seeds)) or NO_SEED
                row = {"contestant": one.name, "rate": rate, SEEDS: seeds}
                rows.append(row | record["figures"] | {"epochs": record.get("epochs")})
    table = pd.DataFrame(rows, columns=None if rows else ["contestant", "rate", SEEDS, "epochs"])
    return with_costs(study, table) if study.steps_per_epoch else table


def values(table: pd.DataFrame, contestant: str, metric: str) -> dict[str, float]:
    """Seeds -> figure."""
    if metric not in table:
        return {}
    rows = table[(table["contestant"] == contestant) & table[metric].notna()]
    return dict(zip(rows[SEEDS], rows[metric].map(float), strict=True))


def differences(found: dict[str, float], baseline: dict[str, float]) -> list[float]:
    """What each run adds to the baseline with the same seeds; [] where a seed has none."""
    if not found or not baseline:
        return []
    if NO_SEED in baseline:
        return [value - baseline[NO_SEED] for value in found.values()]
    if NO_SEED in found:
        return [found[NO_SEED] - value for value in baseline.values()]
    if not {seed for seeds in found for seed in seeds.split("+")} <= baseline.keys():
        return []
    return [
        value - mean(baseline[seed] for seed in seeds.split("+")) for seeds, value in found.items()
    ]


def interval(added: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean; all numbers if there are fewer than two."""
    from scipy.stats import t

    if len(added) < 2:
        return -inf, inf
    half = float(t.ppf(0.975, len(added) - 1)) * stdev(added) / sqrt(len(added))
    return mean(added) - half, mean(added) + half


# -- cost to a loss --------------------------------------------------------------------------------


def with_costs(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """With columns steps and seconds until the baseline's last training loss with the same seed.

    Between the ends of two epochs both are interpolated. They are infinite where the loss is not
    reached, and missing where the baseline has no such seed.
    """
    if table.empty:
        return table
    base = table[table["contestant"] == study.baseline].set_index(SEEDS)["epochs"]
    costs = []
    for seeds, epochs in zip(table[SEEDS], table["epochs"], strict=True):
        if seeds in base:
            target = base[seeds][-1][study.figure]
            costs.append(cost(epochs, study.figure, target, study.steps_per_epoch))
        else:
            costs.append((nan, nan))
    return table.assign(steps=[c[0] for c in costs], seconds=[c[1] for c in costs])


def cost(epochs: list[dict], metric: str, target: float, steps: int) -> tuple[float, float]:
    """(steps, seconds) after which a curve of epochs has come down to the target."""
    before, spent = None, 0.0
    for number, epoch in enumerate(epochs):
        value = epoch[metric]
        if value <= target:
            part = 1.0 if before is None else (before - target) / (before - value)
            return steps * (number + part), spent + part * epoch["seconds"]
        before, spent = value, spent + epoch["seconds"]
    return inf, inf


# -- words -----------------------------------------------------------------------------------------


def answer(study: Study, one: Contestant, metric: str, added: list[float]) -> str:
    """yes, no, can't tell: by the side of 0 on which the whole interval lies."""
    if not added:
        return "not measured"
    if one.combine > 1:
        return "can't tell: these runs share seeds"
    reached = sum(map(isfinite, added))
    if not reached:
        return "no: it does not get there"
    if reached < len(added):
        return f"can't tell: {reached} of {len(added)} seeds get there"
    low, high = interval(added)
    if one.seeds == study.contestant(study.baseline).seeds == "none":
        low = high = added[0]  # nothing is drawn: the difference is exact
    more_is_better = study.more_is_better and metric == study.figure  # costs: less is better
    better, worse = (low > 0, high < 0) if more_is_better else (high < 0, low > 0)
    if better or worse:
        return "yes" if better is not study.worse else "no"
    words = {1: "one seed", 2: "two seeds", 3: "three seeds"}
    return f"can't tell with {words.get(len(added), f'{len(added)} seeds')}"
