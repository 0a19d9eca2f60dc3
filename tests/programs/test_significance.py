"""Significance: exact p-values, intervals with their coverage, variances by hand, whole reports."""

import sys

import numpy as np
import pytest
from course_files import predicted, write, write_course

from engine.prediction_files import ANSWER_TOKENS, write_predictions
from engine.records import read_pairs, read_sentiment
from programs.significance import significance
from programs.significance.significance import (
    compare,
    mcnemar,
    outperforming,
    resampled_accuracies,
    table,
)

# -- statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "only_a, only_b", [(0, 0), (5, 5), (1, 9), (9, 1), (0, 4), (30, 52), (700, 800)]
)
def test_mcnemar_s_test_is_scipy_s_binomial_test(only_a, only_b):
    stats = pytest.importorskip("scipy.stats")
    n = only_a + only_b
    expected = stats.binomtest(only_a, n).pvalue if n else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_s_test_of_a_thousand_rows_against_none_is_no_overflow():
    assert 0 < mcnemar(0, 1000) < 1e-300 and mcnemar(0, 3000) == 0.0


def by_rows(right, samples, rng):
    """The bootstrap as Koehn writes it: row by row."""
    n = right.shape[1]
    rows = rng.integers(n, size=(samples, n))
    return right[:, rows].mean(axis=2).T


def test_kinds_of_rows_are_drawn_as_the_rows_themselves_would_be():
    right = np.random.default_rng(1).random((3, 40)) < [[0.5], [0.7], [0.9]]
    ours = resampled_accuracies(right, 20_000, np.random.default_rng(2))
    slow = by_rows(right, 20_000, np.random.default_rng(3))
    assert ours.shape == slow.shape == (20_000, 3)
    np.testing.assert_allclose(ours.mean(axis=0), slow.mean(axis=0), atol=0.003)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(slow.T), atol=2e-4)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(right, bias=True) / 40, atol=2e-4)


def test_rows_in_another_order_give_the_same_figures():
    right = np.random.default_rng(1).random((2, 60)) < 0.6
    shuffled = right[:, np.random.default_rng(2).permutation(60)]
    one, other = (compare(x[:1], x[1:], samples=300, seed=4) for x in (right, shuffled))
    assert one == other
    assert compare(right[:1], right[1:], samples=300, seed=5) != one


def test_the_interval_is_the_normal_one_of_paired_differences():
    rng = np.random.default_rng(0)
    a, b = rng.random((1, 2000)) < 0.8, rng.random((1, 2000)) < 0.78
    found = compare(a, b, samples=4000, seed=0)
    d = a[0].astype(float) - b[0]
    error = d.std() / np.sqrt(2000)
    assert found.difference == pytest.approx(d.mean()) and found.interval_runs is None
    assert found.error == pytest.approx(error, rel=0.05)
    assert found.interval == pytest.approx(
        [d.mean() - 1.96 * error, d.mean() + 1.96 * error], abs=2e-3
    )


def test_pairing_sees_what_single_intervals_do_not():
    """A is right where B is, and in a few rows more: tiny, yet every draw says so."""
    b = np.arange(1000)[None] < 500
    a = np.arange(1000)[None] < 510
    found = compare(a, b, samples=2000, seed=0)
    assert found.better > 0.999 and found.interval[0] > 0
    assert found.tests == [{"only_a": 10, "only_b": 0, "p": 2 / 2**10}]


def test_equal_systems_are_seldom_called_different():
    """Of 200 pairs of equal systems about 5 % have 0 outside their interval."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.random((1, 300)) < 0.7, rng.random((1, 300)) < 0.7
        low, high = compare(a, b, samples=400, seed=seed).interval
        wrong += low > 0 or high < 0
    assert 2 <= wrong <= 22


def test_drawing_runs_too_widens_the_interval_by_their_variance():
    """Runs of very different accuracy on the same rows: Var = rows' + runs' variance / runs."""
    rng = np.random.default_rng(0)
    a = rng.random((4, 3000)) < [[0.6], [0.7], [0.8], [0.9]]
    b = rng.random((4, 3000)) < [[0.65], [0.65], [0.65], [0.65]]
    found = compare(a, b, samples=4000, seed=0)
    narrow, wide = (high - low for low, high in (found.interval, found.interval_runs))
    assert narrow < 0.03
    variance = found.error**2 + (a.mean(axis=1).var() + b.mean(axis=1).var()) / 4
    assert wide == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.1)


def test_the_probability_of_outperforming_counts_pairs():
    assert outperforming(np.array([0.5, 0.7]), np.array([0.6, 0.7])) == (0 + 0 + 1 + 0.5) / 4
    assert outperforming(np.array([0.9]), np.array([0.1])) == 1.0


def test_the_variances_are_those_of_the_formulas():
    right = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]) == 1
    rows = significance.system_rows({"X": right, "Y": right[:1]})
    assert rows[1:] == [
        ["X", "2", "0.8000", f"{np.sqrt(2 * 0.2**2):.4f}", f"{np.sqrt((0.24 + 0) / 2 / 5):.4f}"],
        ["Y", "1", "0.6000", "–", f"{np.sqrt(0.24 / 5):.4f}"],
    ]


def test_a_verdict_names_the_rows_that_would_be_needed():
    """With that many more rows, the same shares of right answers lie just outside."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((1, 400)) < p for p in (0.72, 0.7))
    found = compare(a, b, samples=4000, seed=0)
    said = significance.verdict(found, ["A", "B"], 400)
    needed = int(said.split("about ")[1].split(" rows")[0].replace(",", ""))
    times = -(-needed // 400)
    more = [np.tile(x, (1, 2 * times)) for x in (a, b)]
    assert "not shown" in said
    assert "not shown" not in significance.verdict(
        compare(*more, samples=4000, seed=0), ["A", "B"], more[0].shape[1]
    )


def test_a_verdict_tells_rows_from_runs():
    """On very many rows every draw is for A, yet its runs differ more than the systems do."""
    a = np.arange(100_000) < np.array([[60_000], [80_000]])
    b = np.arange(100_000) < np.array([[69_000], [69_500]])
    found = compare(a, b, samples=500, seed=0)
    assert found.interval[0] > 0 > found.interval_runs[0]
    assert "more seeds" in significance.verdict(found, ["A", "B"], 100_000)


# -- files and reports -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data and predictions: of SST by two systems, three runs each, of Quora by one each."""
    folder = tmp_path_factory.mktemp("place")
    write_course(folder / "data", rows=200)
    sst = read_sentiment(folder / "data" / "ids-sst-dev.csv", 5)
    quora = read_pairs(folder / "data" / "quora-dev.csv", labelled=True).records
    for name, share in (("good", 0.9), ("poor", 0.5)):
        for seed in range(3):
            rng = np.random.default_rng(seed)
            classes = [r.label if rng.random() < share else (r.label + 1) % 5 for r in sst]
            ids = [record.sent_id for record in sst]
            write_predictions(folder / f"{name}-{seed}.csv", "Predicted_Sentiment", ids, classes)
        answers = [ANSWER_TOKENS[r.label if rng.random() < share else 1 - r.label] for r in quora]
        ids = [record.sent_id for record in quora]
        write_predictions(folder / f"para-{name}.csv", "Predicted_Is_Paraphrase", ids, answers)
    return folder


GOLD = ("--gold", "data/ids-sst-dev.csv")


def report(monkeypatch, capsys, *words) -> str:
    monkeypatch.setattr(sys, "argv", ["significance", *map(str, words)])
    significance.main()
    return capsys.readouterr().out


def test_a_report_has_the_figures_of_the_files(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    runs = [[f"{name}-{seed}.csv" for seed in range(3)] for name in ("good", "poor")]
    words = ["--gold", "data/ids-sst-dev.csv", "--names", "LoRA", "plain", "--samples", "500"]
    out = report(monkeypatch, capsys, *words, "--a", *runs[0], "--b", *runs[1])
    gold = {r.sent_id: r.label for r in read_sentiment("data/ids-sst-dev.csv", 5)}
    accuracies = []
    for path in runs[0]:
        classes = predicted(path)
        accuracies.append(np.mean([gold[i] == int(value) for i, value in classes.items()]))
    mean, spread = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert f"| LoRA | 3 | {mean:.4f} | {spread:.4f} |" in out
    assert "rows and runs drawn anew | from +0." in out and "P(LoRA > plain)" in out
    assert "P(LoRA > plain) over pairs of runs | 1.00 |" in out and out.count("McNemar, run") == 3
    assert out.splitlines()[-1].startswith("LoRA is better than plain, beyond the chance")
    swapped = report(monkeypatch, capsys, *words[:2], "--a", *runs[1], "--b", *runs[0])
    assert swapped.splitlines()[-1].startswith("B is better than A, beyond the chance")


def test_a_report_in_latex_of_paraphrase_answers(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["--gold", "data/quora-dev.csv", "--names", "a_b", "c&d", "--format", "latex"]
    out = report(monkeypatch, capsys, *words, "--a", "para-good.csv", "--b", "para-poor.csv")
    assert out.count(r"\begin{tabular}") == out.count(r"\bottomrule") == 2
    assert r"a\_b & 1 & " in out and r"c\&d & 1 & " in out and r"95 \% interval" in out
    *lines, said = out.splitlines()
    assert all(line.endswith(r" \\") for line in lines if "&" in line) and "more seeds" in said


def test_a_markdown_table_is_one():
    assert table([["a", "b|c"], ["1", "2"]], "markdown") == "| a | b/c |\n| --- | --- |\n| 1 | 2 |"


HEADER = "id, Predicted_Sentiment \n"


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "bad.csv: no such file"),
        ("id; x\n", "bad.csv, line 1: found 'id; x', expected 'id, Predicted_Sentiment' or"),
        (HEADER, "bad.csv: a header and no rows"),
        (HEADER + "s1x0, 1 \ns1x1, 9 \n", "bad.csv, line 3: found 's1x1, 9', expected an id and"),
        (HEADER + "s1x0, 1 \ns1x0, 2 \n", "bad.csv, line 3: id s1x0 stands twice"),
        (HEADER + "s1x0, 1 \n", "99 ids differ from those of data/ids-sst-dev.csv, the first is"),
        ("id, Predicted_Is_Paraphrase \nq1, 8505 \n", "data/ids-sst-dev.csv, line 1: no column"),
    ],
)
def test_files_that_do_not_fit_are_refused(content, said, place, monkeypatch, capsys, refused):
    monkeypatch.chdir(place)
    (place / "bad.csv").unlink(missing_ok=True)
    if content is not None:
        write("bad.csv", content)
    with refused(said):
        report(monkeypatch, capsys, *GOLD, "--a", "bad.csv", "--b", "poor-0.csv")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--a", "good-0.csv", "good-0.csv", "--b", "poor-0.csv"], "a file stands twice"),
        (["--a", "good-0.csv", "--b", "para-poor.csv"], "para-poor.csv, line 1: found 'id, Predi"),
        (["--a", "good-0.csv", "--b", "poor-0.csv", "--samples", "0"], "--samples 0: expected"),
        (["--a", "good-0.csv", "--b", "poor-0.csv", "--names", "x", "x"], "--names x twice"),
    ],
)
def test_calls_that_make_no_sense_are_refused(words, said, place, monkeypatch, capsys, refused):
    monkeypatch.chdir(place)
    with refused(said):
        report(monkeypatch, capsys, *GOLD, *words)
