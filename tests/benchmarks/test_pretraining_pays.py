"""The study counts what it says: rates chosen by the first seed, nothing run twice."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import pretraining_pays as study
from utils import ROOT, InputError

SAMPLE = str(ROOT / "data" / "sample")


def arguments(tmp_path, **change):
    flags = {"seeds": [1, 2, 3], "lrs": [0.1, 0.2], "limit": None, "bf16": False, "use_gpu": False}
    flags |= {"tasks": ["sst"], "jobs": 1}
    return SimpleNamespace(**flags | {"data_dir": SAMPLE, "out": str(tmp_path / "r.json")} | change)


@pytest.fixture
def fake_runs(monkeypatch):
    """Figures by rate, start and seed in place of training; the calls are noted."""
    calls = []

    def fine_tune(args, name, start, *, seed, lr):
        calls.append((name, start, seed, lr))
        best = {"random weights": 0.1, "gpt2-mini": 0.2}[start]
        figure = 0.5 + 0.1 * (lr == best) + 0.01 * seed + 0.2 * (start == "gpt2-mini")
        return 10 * figure if name == "sonnet" else figure

    monkeypatch.setattr(study, "fine_tune", fine_tune)
    return calls


def test_each_start_keeps_the_rate_that_was_better_with_the_first_seed(fake_runs, tmp_path):
    study.Study(arguments(tmp_path)).run()
    kept = {
        start: [lr for _, s, seed, lr in fake_runs if s == start and seed > 1]
        for start in study.STARTS
    }
    assert kept == {"random weights": [0.1, 0.1], "gpt2-mini": [0.2, 0.2]}
    results = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    rate, values = study.scores(results["runs"], "sst", "gpt2-mini")
    assert rate == "lr 0.2" and values == pytest.approx([0.81, 0.82, 0.83])


def test_perplexity_is_better_when_it_is_smaller(fake_runs, tmp_path):
    study.Study(arguments(tmp_path, tasks=["sonnet"])).run()
    kept = {lr for _, s, seed, lr in fake_runs if s == "gpt2-mini" and seed > 1}
    assert kept == {0.1}


def test_what_is_in_the_file_is_not_run_again(fake_runs, tmp_path):
    study.Study(arguments(tmp_path)).run()
    count = len(fake_runs)
    again = study.Study(arguments(tmp_path))
    again.run()
    assert len(fake_runs) == count == 8
    table = study.table(again.results)
    assert "0.820 ± 0.010" in table and "0.620 ± 0.010" in table
    assert table.count("–") == 9  # the three tasks that were not run


def test_results_of_other_settings_are_not_mixed(fake_runs, tmp_path):
    study.Study(arguments(tmp_path)).run()
    with pytest.raises(InputError, match="another limit"):
        study.Study(arguments(tmp_path, limit=5))


def test_results_of_another_checkpoint_are_not_mixed(fake_runs, tmp_path, monkeypatch):
    study.Study(arguments(tmp_path)).run()
    monkeypatch.setattr(study, "fingerprint", lambda: "gpt2-mini of tomorrow")
    with pytest.raises(InputError, match="another checkpoint"):
        study.Study(arguments(tmp_path))


def test_several_jobs_keep_the_same_figures(fake_runs, tmp_path):
    tasks = ["sst", "cfimdb", "paraphrase", "sonnet"]
    results = []
    for jobs in (1, 3):
        args = arguments(tmp_path, tasks=tasks, jobs=jobs, out=str(tmp_path / f"{jobs}.json"))
        one = study.Study(args)
        one.run()
        results.append(one.results["runs"])
    assert results[0] == results[1] and len(results[0]) == 8 * 4 + 3


@pytest.mark.parametrize("name, least", [("sst", 0.4), ("cfimdb", 0.7), ("paraphrase", 0.6)])
def test_a_bag_of_words_learns_the_sample(tmp_path, name, least):
    assert study.bag_of_words(arguments(tmp_path), name) > least
