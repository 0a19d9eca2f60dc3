"""Answers come from the differences to the baseline with the same seed, and their interval."""

from math import inf

import pytest
from test_plan import done_in_rounds, study_of

from studies import tables
from studies.data import QUARTER
from studies.entries import Contestant, load
from studies.figures import answer, cost, differences, figures_of, interval, values
from studies.plan import plan

PLAIN, OTHER = Contestant("plain"), Contestant("other")


def test_the_figures_are_those_of_the_kept_rate():
    study = study_of(PLAIN, lrs=(0.1, 0.2))
    records = done_in_rounds(study, lambda run: run.lr + run.seeds[0] / 100)
    table = figures_of(study, records)
    assert values(table, "plain", "dev_acc") == pytest.approx({"1": 0.21, "2": 0.22, "3": 0.23})
    assert values(figures_of(study, []), "plain", "dev_acc") == {}


def test_a_contestant_of_which_a_rate_is_still_to_be_tried_has_no_figure_yet():
    study = study_of(PLAIN, OTHER, lrs=(0.1, 0.2))
    records = done_in_rounds(study, lambda run: run.lr)
    left = [r for r in records if (r["contestant"], r["lr"], r["seeds"]) != ("other", 0.1, [1])]
    assert len(left) == len(records) - 1
    table = figures_of(study, left)
    assert values(table, "other", "dev_acc") == {} and len(values(table, "plain", "dev_acc")) == 3


def test_the_interval_is_student_s():
    # mean 2, s = 1, n = 3; t(0.975, 2) = 4.302653
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5)
    )
    assert interval([1.0]) == (-inf, inf)


def test_a_difference_is_to_the_baseline_s_run_with_the_same_seeds():
    base = {"1": 1.0, "2": 2.0, "3": 4.0}
    assert differences({"2": 5.0, "3": 5.0}, base) == [3.0, 1.0]
    assert differences({"1+2": 5.0, "1+2+3": 7.0}, base) == pytest.approx([3.5, 7 - 7 / 3])
    assert differences({"none": 5.0}, base) == [4.0, 3.0, 1.0]
    assert differences(base, {"none": 1.0}) == [0.0, 1.0, 3.0]
    assert differences({"4": 1.0}, base) == differences({}, base) == []


@pytest.mark.parametrize(
    "added, fields, said",
    [
        ([0.1, 0.11, 0.12], {}, "yes"),
        ([-0.1, -0.11, -0.12], {}, "no"),
        ([0.1, 0.2, 0.0], {}, "can't tell with three seeds"),
        ([0.1, 0.11], {}, "yes"),  # t(0.975, 1) is 12.7
        ([0.1, 0.2], {}, "can't tell with two seeds"),
        ([inf, inf], {}, "no: it does not get there"),
        ([inf, 0.1], {}, "can't tell: 1 of 2 seeds get there"),
        ([0.1], {}, "can't tell with one seed"),
        ([], {}, "not measured"),
        ([-1.0, -1.1, -1.2], {"task": "sonnet"}, "yes"),  # perplexity
        ([0.1, 0.11, 0.12], {"worse": True}, "no"),
        ([1.0, 1.1, 1.2], {"task": "sonnet", "worse": True}, "yes"),
    ],
)
def test_an_answer_needs_the_whole_interval_on_one_side(added, fields, said):
    study = study_of(PLAIN, OTHER, **fields)
    assert answer(study, OTHER, study.figure, added) == said


def test_a_difference_of_two_that_draw_nothing_is_exact():
    words, others = Contestant("plain", seeds="none"), Contestant("other", seeds="none")
    study = study_of(words, others)
    assert [answer(study, others, "dev_acc", [added]) for added in (0.1, -0.1)] == ["yes", "no"]
    assert answer(study_of(PLAIN, others), others, "dev_acc", [0.1]).endswith("one seed")


def test_runs_that_share_seeds_have_no_interval():
    both = Contestant("both", combine=2)
    assert answer(study_of(PLAIN, both), both, "dev_acc", [1.0, 1.1, 1.2]).startswith("can't tell")


def test_steps_and_seconds_to_a_loss_are_interpolated():
    curve = [{"loss": loss, "seconds": 10.0} for loss in (2.0, 1.0, 0.5)]
    assert cost(curve, "loss", 1.25, 4) == pytest.approx((4 * 1.75, 17.5))
    assert cost(curve, "loss", 3.0, 4) == (4, 10.0)
    assert cost(curve, "loss", 0.1, 4) == (inf, inf)


def test_the_optimizer_that_gets_there_first_is_the_answer():
    [study] = load(["optimizers-sst"])
    records, faster = [], {"adamw": 1.0, "muon": 0.5, "soap": 0.1, "shampoo": 1.5, "kfac": 1.0}
    while due := plan(study, records)[1]:
        for run in due:
            slow = faster[run.contestant.name] + 0.001 * run.seeds[0]
            epochs = [{"train_loss": slow * (4 - i), "seconds": 5.0} for i in range(4)]
            key = dict(zip(("study", "contestant", "lr", "seeds"), run.key, strict=True))
            figures = {"train_loss": epochs[-1]["train_loss"]}
            records.append(key | {"settings": run.settings, "figures": figures, "epochs": epochs})
    rows = tables.answers("followups", records).splitlines()
    [muon] = [row for row in rows if "`muon`" in row and "steps" in row]
    [shampoo] = [row for row in rows if "`shampoo`" in row and "seconds" in row]
    assert "| yes | -" in muon and shampoo.endswith("| no: it does not get there | not reached |")
    assert "| kfac (lr 0.0003) | 1.002 ± 0.001 | +0.000 ± 0.000 | 268 ± 0 |" in tables.one_table(
        study, records
    )


# -- tables ----------------------------------------------------------------------------------------


def records_of(study, figures: dict[str, list[float]]) -> list[dict]:
    kept = {name: iter(found) for name, found in figures.items()}
    runs = [run for run in plan(study, [])[1] if run.contestant.name in figures]
    return [
        dict(zip(("study", "contestant", "lr", "seeds"), run.key, strict=True))
        | {"settings": run.settings, "figures": {study.figure: value}}
        for run in runs
        for value in [next(kept[run.contestant.name], None)]
        if value is not None
    ]


def test_a_table_has_means_spreads_and_differences_seed_by_seed():
    study = study_of(PLAIN, OTHER, Contestant("absent"), name="what-sst")
    records = records_of(study, {"plain": [0.1, 0.2, 0.3], "other": [0.2, 0.3, 0.4]})
    assert tables.one_table(study, records).splitlines() == [
        "| what: sst | dev acc | against plain |",
        "|---|---|---|",
        "| plain | 0.200 ± 0.100 | – |",
        "| other | 0.300 ± 0.100 | +0.100 ± 0.000 |",
        "| absent | not measured | – |",
    ]


def test_what_others_say_stands_beside_what_was_measured():
    studies = load(suite="gpt2")
    text = tables.one_by_one("gpt2", [])
    assert "| full-model | not measured | – | 0.519 | 0.513 |" in text
    assert all(study.hub and study.model == "gpt2" for study in studies)


def test_the_brief_table_says_what_the_answers_say(monkeypatch):
    names = ("rdrop", "ema", "muon", "prefix", "soap")
    study = study_of(PLAIN, *map(Contestant, names))
    quarter = study_of(PLAIN, Contestant("lion"), name="b", data=QUARTER)
    figures = {
        "plain": [0.40, 0.42, 0.44],
        "rdrop": [0.50, 0.52, 0.55],  # +0.103, the interval from +0.089 to +0.118
        "ema": [0.41, 0.44, 0.44],  # +0.010, from -0.015 to +0.035
        "muon": [0.30, 0.62, 0.44],
        "prefix": [0.30, 0.32, 0.35],
        "soap": [0.50],  # not all seeds
    }
    records = records_of(study, figures)
    records += records_of(quarter, {"plain": [0.30, 0.32, 0.34], "lion": [0.20, 0.23, 0.25]})
    monkeypatch.setattr(tables, "load", lambda **_: [study, quarter])
    rows = tables.techniques_brief(records).splitlines()
    assert rows[0] == "| sentences | better | can't tell | worse |"
    unsure = "`ema` +0.010, `muon` +0.033, `soap` +0.100"
    assert rows[2] == f"| all | `rdrop` +0.103 | {unsure} | `prefix` -0.097 |"
    assert rows[3] == "| a quarter | – | – | `lion` -0.093 |"
    results = tables.technique_results(records)
    assert results["rdrop"] == "+0.103 ± 0.006" and results["lion"] == "-0.093 ± 0.006 on a quarter"
