"""Studies count what they say: rates chosen by the first seed, nothing run twice or mixed."""

import json
from types import SimpleNamespace

import pytest

from engine.errors import InputError
from engine.files import ROOT
from studies import pretraining_pays as pays
from studies import study
from studies import techniques_help as helps
from studies.study import Study, scores

SAMPLE = str(ROOT / "data" / "sample")
ALL_TASKS = ["sst", "cfimdb", "paraphrase", "sonnet"]
WHOS = ["plain", "muon", "lora:rank=16,targets=all"]


def arguments(tmp_path, **change):
    flags = {"seeds": [1, 2, 3], "lrs": [0.1, 0.2], "limit": None, "bf16": False, "use_gpu": False}
    flags |= {"tasks": ["sst"], "jobs": 1, "data_dir": SAMPLE, "out": str(tmp_path / "r.json")}
    return SimpleNamespace(**flags | change)


@pytest.fixture
def fake_runs(monkeypatch):
    """Figures by rate, contestant and seed in place of training; the calls are noted."""
    calls = []

    def fine_tune(args, name, flags_of, *, seed, lr):
        who = flags_of.args[-1]
        calls.append((name, who, seed, lr))
        best = {pays.RANDOM: 0.1}.get(who, 0.2)
        figure = 0.5 + 0.1 * (lr == best) + 0.01 * seed
        figure += {pays.MINI: 0.2, "lora:rank=16,targets=all": 0.03}.get(who, 0.0)
        return 10 * figure if name == "sonnet" else figure

    monkeypatch.setattr(study, "fine_tune", fine_tune)
    return calls


def test_each_contestant_keeps_the_rate_that_was_better_with_the_first_seed(fake_runs, tmp_path):
    pays.run(Study(arguments(tmp_path)))
    kept = {
        start: [lr for _, who, seed, lr in fake_runs if who == start and seed > 1]
        for start in (pays.RANDOM, pays.MINI)
    }
    assert kept == {pays.RANDOM: [0.1, 0.1], pays.MINI: [0.2, 0.2]}
    results = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    rate, values = scores(results["runs"], "sst", pays.MINI)
    assert rate == "lr 0.2" and values == pytest.approx([0.81, 0.82, 0.83])


def test_perplexity_is_better_when_it_is_smaller(fake_runs, tmp_path):
    pays.run(Study(arguments(tmp_path, tasks=["sonnet"])))
    kept = {lr for _, who, seed, lr in fake_runs if who == pays.MINI and seed > 1}
    assert kept == {0.1}


def test_runs_in_the_file_are_not_run_again(fake_runs, tmp_path):
    pays.run(Study(arguments(tmp_path)))
    count = len(fake_runs)
    again = Study(arguments(tmp_path))
    pays.run(again)
    assert len(fake_runs) == count == 8
    table = pays.table(again.results)
    assert "0.820 ± 0.010" in table and "0.620 ± 0.010" in table
    assert table.count("–") == 9  # the three tasks that were not run


def test_results_of_other_settings_or_weights_are_not_mixed(fake_runs, tmp_path, monkeypatch):
    pays.run(Study(arguments(tmp_path)))
    with pytest.raises(InputError, match="another limit"):
        Study(arguments(tmp_path, limit=5))
    monkeypatch.setattr(study, "checkpoint", lambda: "gpt2-mini of tomorrow")
    with pytest.raises(InputError, match="another checkpoint"):
        Study(arguments(tmp_path))


def test_several_jobs_keep_the_same_figures(fake_runs, tmp_path):
    results = []
    for jobs in (1, 3):
        out = str(tmp_path / f"{jobs}.json")
        one = Study(arguments(tmp_path, tasks=ALL_TASKS, jobs=jobs, out=out))
        pays.run(one)
        results.append(one.results["runs"])
    assert results[0] == results[1] and len(results[0]) == 8 * 4 + 3


def test_a_failed_run_ends_the_study(fake_runs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("no such file")

    monkeypatch.setattr(study, "fine_tune", fail)
    with pytest.raises(InputError, match="no such file"):
        pays.run(Study(arguments(tmp_path)))


@pytest.mark.parametrize("who", [pays.RANDOM, pays.MINI])
def test_a_real_run_gives_the_figure_of_its_best_epoch(who, tmp_path, monkeypatch):
    monkeypatch.setitem(study.RUNS, "sst", "--fine-tune-mode last-linear-layer --epochs 2")
    args = arguments(tmp_path, limit=10)

    def flags_of(seed, folder):
        return pays.flags_of(who, seed, folder)

    figure = study.fine_tune(args, "sst", flags_of, seed=1, lr=1e-3)
    assert figure in [i / 10 for i in range(11)]


@pytest.mark.parametrize("name, least", [("sst", 0.4), ("cfimdb", 0.7), ("paraphrase", 0.6)])
def test_a_bag_of_words_learns_the_sample(tmp_path, name, least):
    assert pays.bag_of_words(arguments(tmp_path), name) > least


def test_techniques_are_compared_with_plain_seed_by_seed(fake_runs, tmp_path):
    one = Study(arguments(tmp_path))
    helps.run(one)
    assert len(fake_runs) == len(helps.CONTESTANTS) * 4
    lines = helps.table(one.results).splitlines()
    [plain] = [line for line in lines if line.startswith("| plain")]
    [lora] = [line for line in lines if line.startswith("| `lora:rank=16,targets=all` ")]
    assert plain.endswith("| 0.620 ± 0.010 (lr 0.2) | – |")
    assert lora.endswith("| 0.650 ± 0.010 (lr 0.2) | +0.030 ± 0.000 |")


def test_each_technique_has_rates_of_its_own_unless_some_are_given(fake_runs, tmp_path):
    helps.run(Study(arguments(tmp_path, lrs=())))
    tried = {who: [lr for _, one, seed, lr in fake_runs if (one, seed) == (who, 1)] for who in WHOS}
    assert tried == {"plain": [3e-4, 1e-3], "muon": [1e-3, 3e-3], WHOS[2]: [1e-3, 3e-3]}
    args = ("sst", "muon", 1, "folder")
    assert helps.flags_of(*args)[-4:] == ["--extension", "muon", "--epochs", "2"]
