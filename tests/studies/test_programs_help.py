"""The study of programs: the same rows for all, checkpoints made once, nothing run twice."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from course_files import call_main, work_in, write_model

pytest.importorskip("programs.ensemble.ensemble", reason="no programs/ here")

from engine.errors import InputError
from engine.files import ROOT
from engine.prediction_files import write_predictions
from engine.records import read_pairs, read_sentiment, read_sonnets
from studies import programs_data as rows
from studies import programs_help as helps
from studies import programs_runs as runs
from studies import study
from studies.programs_help import PLAIN, QUESTIONS, ProgramsStudy

SAMPLE = ROOT / "data" / "sample"
OTHERS = [name for name in QUESTIONS if name != "search"]
WORKS = ("rounded", "together", "augmented", "as_trained", "preferring", "decoded", "tuned")


def arguments(tmp_path, **change):
    flags = {"seeds": [1, 2, 3], "limit": 20, "bf16": False, "use_gpu": False, "jobs": 1}
    flags |= {"questions": list(QUESTIONS), "folder": str(tmp_path / "folder")}
    flags |= {"data_dir": str(SAMPLE), "out": str(tmp_path / "r.json")}
    return SimpleNamespace(**flags | change)


# -- data ------------------------------------------------------------------------------------------


def test_samples_are_drawn_from_all_of_a_file_and_dev_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(rows.ROWS[rows.SMALL], "ids-sst-train.csv", 30)
    rows.prepare(SAMPLE, tmp_path)
    everything = read_sentiment(SAMPLE / "ids-sst-train.csv", 5)
    drawn = read_sentiment(tmp_path / "small" / "ids-sst-train.csv", 5)
    places = [everything.index(record) for record in drawn]
    assert len(places) == 30 and places == sorted(places) and max(places) > 220
    assert read_sentiment(tmp_path / "whole" / "ids-sst-train.csv", 5) == everything
    for folder in ("small", "whole"):
        dev = read_sentiment(tmp_path / folder / "ids-sst-dev.csv", 5)
        assert dev == read_sentiment(SAMPLE / "ids-sst-dev.csv", 5)
        pairs = read_pairs(tmp_path / folder / "quora-dev.csv", labelled=True)
        assert pairs == read_pairs(SAMPLE / "quora-dev.csv", labelled=True)
    before = (tmp_path / "small" / "ids-sst-train.csv").read_bytes()
    rows.prepare(SAMPLE, tmp_path)
    assert (tmp_path / "small" / "ids-sst-train.csv").read_bytes() == before


def test_no_test_rows_are_copied(tmp_path):
    rows.prepare(SAMPLE, tmp_path)
    for folder in ("small", "whole"):
        [row] = read_sentiment(tmp_path / folder / "ids-sst-test-student.csv", None)
        [pair] = read_pairs(tmp_path / folder / "quora-test-student.csv", labelled=False).records
        assert (row.sent_id, pair.sent_id) == ("x", "x")
        assert len(read_sonnets(tmp_path / folder / "sonnets_held_out.txt")) == 1


def test_a_limit_keeps_each_prompt_with_its_sonnet(tmp_path):
    rows.prepare(SAMPLE, tmp_path, limit=2)
    folder = tmp_path / "whole"
    prompts, gold = (read_sonnets(folder / name) for name in (rows.FILES[-2], rows.GOLD))
    assert [p.sent_id for p in prompts] == [g.sent_id for g in gold] and len(gold) == 2
    assert len(read_sentiment(folder / "ids-sst-dev.csv", 5)) == 2
    assert [path.name for path in folder.iterdir()].count("sonnets.txt") == 1


# -- what is run -----------------------------------------------------------------------------------


@pytest.fixture
def fake_runs(monkeypatch):
    """Checkpoints of no bytes, and figures in place of programs; the calls are noted."""
    calls, lock = [], threading.Lock()

    def note(*call):
        with lock:
            calls.append(call)

    def train(args, name, flags, folder, *, seed, lr):
        note("train", name, seed)
        run = Path(folder) / "run"
        run.mkdir(parents=True)
        (run / "best.safetensors").touch()
        return run

    def work(name):
        def figures(_, *words, seed=None, epochs=None):
            note(name, *map(str, words), seed)
            if name == "together":
                seeds, flags = words[1:]
                return {"dev_acc": sum(seeds) / 100 + 0.02 * (len(seeds) - 1 + len(flags))}
            better = any(str(word) not in ("sst", "sonnet", "", runs.UNROUNDED) for word in words)
            found = {"dev_acc": 0.1 * better + seed / 100, "dev_perplexity": 80.0 - seed}
            return found | {"megabytes": 20.0, "speed": 1.5}

        return figures

    def searched(_, seed):
        note("searched", seed)
        return {"dev_acc": 0.9, "lr": 0.002, "hidden_dropout_prob": 0.25}

    monkeypatch.setattr(study, "environment", lambda device: {})
    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "searched", searched)
    for name in WORKS:
        monkeypatch.setattr(runs, name, work(name))
    return calls


def test_every_question_is_answered_by_every_seed_and_contestant(fake_runs, tmp_path):
    helps.run(ProgramsStudy(arguments(tmp_path)))
    found = {}
    for key in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["runs"]:
        question, name, who, seeds, _ = key.split(", ")
        found.setdefault((question, name), set()).add((who, seeds))
    counts = {place: len(contestants) for place, contestants in found.items()}
    assert counts == {
        ("search", "sst"): 2 * 2 + 2 + 1,
        ("quantize", "sst"): 7 * 3,
        ("quantize", "sonnet"): 7 * 3,
        ("ensemble", "sst"): 7,
        ("ensemble", "paraphrase"): 14,
        ("augment", "sst"): 6 * 3,
        ("augment", "paraphrase"): 3 * 3,
        ("dpo", "sonnet"): 3 * 3,
        ("decoding", "sonnet"): 9 * 3,
    }
    for question, name in found:
        known = {who for who, _ in found[question, name]}
        assert PLAIN in known and known <= set(QUESTIONS[question].order)


def test_runs_in_the_file_are_not_run_again(fake_runs, tmp_path):
    first = ProgramsStudy(arguments(tmp_path))
    helps.run(first)
    count = len(fake_runs)
    assert len([call for call in fake_runs if call[0] == "train"]) == 3 * 3
    again = ProgramsStudy(arguments(tmp_path))
    helps.run(again)
    assert len(fake_runs) == count and again.results["runs"] == first.results["runs"]


def test_a_question_takes_only_the_checkpoints_that_it_needs(fake_runs, tmp_path):
    helps.run(ProgramsStudy(arguments(tmp_path, questions=["search", "decoding"], seeds=[5])))
    assert [call for call in fake_runs if call[0] == "train"] == [("train", "sonnet", 5)]


def test_several_jobs_keep_the_same_figures(fake_runs, tmp_path):
    results = []
    for jobs in (1, 3):
        one = ProgramsStudy(arguments(tmp_path, jobs=jobs, out=str(tmp_path / f"{jobs}.json")))
        helps.run(one)
        results.append(one.results)
    assert results[0]["runs"] == results[1]["runs"]
    assert helps.table(results[0]) == helps.table(results[1])


def test_the_best_trial_s_flags_are_trained_with_the_other_seeds(fake_runs, tmp_path):
    helps.run(ProgramsStudy(arguments(tmp_path, questions=["search"])))
    best = [call for call in fake_runs if call[0] == "tuned" and call[1] == "0.002"]
    assert fake_runs[0] == ("searched", 1)
    flags = "['--hidden_dropout_prob', '0.25']"
    assert best == [("tuned", "0.002", flags, seed) for seed in (2, 3)]
    assert {call[-1] for call in fake_runs if call[0] == "tuned"} == {2, 3}


def test_a_failed_run_ends_the_study_and_keeps_what_was_there(fake_runs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("no such strategy")

    monkeypatch.setattr(runs, "decoded", fail)
    with pytest.raises(InputError, match="no such strategy"):
        helps.run(ProgramsStudy(arguments(tmp_path, questions=["dpo", "decoding", "ensemble"])))
    kept = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["runs"]
    assert "dpo, sonnet, simpo, seed 3, dev_perplexity" in kept
    assert sum(key.startswith("ensemble") for key in kept) < 7 + 14


def test_an_unfinished_checkpoint_is_trained_again_and_a_finished_one_kept(fake_runs, tmp_path):
    one = ProgramsStudy(arguments(tmp_path))
    unfinished = one.root / "sst-1.unfinished" / "run"
    unfinished.mkdir(parents=True)
    (unfinished / "best.safetensors").write_bytes(b"half")
    for _ in range(2):
        assert runs.checkpoint(one, "sst", 1).read_bytes() == b""
    assert fake_runs == [("train", "sst", 1)] and not unfinished.exists()


def test_other_settings_have_checkpoints_of_their_own(tmp_path):
    roots = []
    for change in ({}, {"limit": 5}, {"bf16": True}, {"seeds": [7]}):
        out = str(tmp_path / f"{len(roots)}.json")
        roots.append(ProgramsStudy(arguments(tmp_path, out=out, **change)).root)
    assert len(set(roots)) == 3 and roots[0] == roots[3]  # seeds share what they can


# -- the table -------------------------------------------------------------------------------------


def test_differences_to_plain_are_seed_by_seed(fake_runs, tmp_path):
    one = ProgramsStudy(arguments(tmp_path))
    helps.run(one)
    lines = helps.table(one.results).splitlines()
    place = lines.index(
        "| quantize: sonnet | dev acc | against plain | dev perplexity | against plain | "
        "megabytes | speed |"
    )
    assert [line.split(" | ")[0] for line in lines[place + 2 : place + 9]] == [
        f"| {who}" for who in helps.ROUNDED
    ]
    assert lines[place + 2].startswith("| plain | 0.020 ± 0.010 | – | 78.0 ± 1.0 | – | 20.0 ±")
    assert lines[place + 3].startswith("| int8 | 0.120 ± 0.010 | +0.100 ± 0.000 | 78.0")


def test_several_seeds_are_compared_with_the_mean_of_each_one_s_own_figure(fake_runs, tmp_path):
    one = ProgramsStudy(arguments(tmp_path, questions=["ensemble"]))
    helps.run(one)
    lines = helps.table(one.results).splitlines()
    assert "| 2 seeds | 0.060 ± 0.010 | +0.040 ± 0.005 |" in lines
    assert "| 3 seeds | 0.100 | +0.080 |" in lines
    assert "| both orders | 0.040 ± 0.010 | +0.020 ± 0.000 |" in lines


def test_a_contestant_without_its_plain_run_is_not_compared():
    figures = {"dpo, sonnet, dpo, seed 1, chrf": 30.0, "dpo, sonnet, plain, seed 2, chrf": 29.0}
    assert "| dpo | 30.0 | – |" in helps.table({"runs": figures})


# -- for real, with a tiny model -------------------------------------------------------------------


def test_it_starts_as_a_script():
    words = [sys.executable, ROOT / "studies" / "programs_help.py", "--help"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "--questions" in said and "--lrs" not in said


def test_accuracy_is_that_of_the_prediction_file(tmp_path):
    path = tmp_path / "dev.csv"
    write_predictions(path, "Predicted_Sentiment", ["a", "b", "c"], [1, 0, 4])
    assert runs.accuracy(path, {"c": "4", "a": "1", "b": "2"}) == pytest.approx(2 / 3)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Programs in this process, on the sample, with few contestants of each kind."""

    def start(args, words):
        if words[0] == "-m":
            words = [f"{words[1]}.__main__", *words[2:]]
        call_main(monkeypatch, words[0].removesuffix(".py"), *words[1:])

    work_in(monkeypatch, tmp_path)
    model = write_model(tmp_path / "model", positions=1024)
    monkeypatch.setattr(runs, "MODEL", str(model))
    monkeypatch.setattr("programs.quantize.job.TIMED_ROUNDS", 1)
    monkeypatch.setitem(study.RUNS, "sonnet", f"{study.RUNS['sonnet']} --epochs 1")
    for module in (study, runs):
        monkeypatch.setattr(module, "start", start)
    few = {PLAIN: runs.UNROUNDED, "int4 by gptq": "gptq --bits 4 --group_size 32"}
    monkeypatch.setattr(helps, "ROUNDED", few)
    monkeypatch.setitem(helps.AUGMENTED, "sst", {PLAIN: ("", 2), "swap": ("--methods swap", 1)})
    dpo = {PLAIN: "", "dpo": "--kinds shuffled unrhymed --epochs 1 --lr 1e-3"}
    monkeypatch.setattr(helps, "PREFERRING", dpo)
    monkeypatch.setattr(helps, "DECODED", {PLAIN: "sample", "beam": "beam:beams=2"})


@pytest.mark.parametrize("question", OTHERS)
def test_a_question_for_real(question, tiny, tmp_path):
    args = arguments(tmp_path, questions=[question], seeds=[1, 2][: 1 + (question == "ensemble")])
    one = ProgramsStudy(args)
    helps.run(one)
    text = helps.table(one.results)
    assert text.count("| plain |") == len({key.split(", ")[1] for key in one.results["runs"]})
    for key, value in one.results["runs"].items():
        low, high = {"dev_perplexity": (1, 1e5), "chrf": (0, 100)}.get(key.split(", ")[-1], (0, 99))
        assert low <= value <= high, key
    if question == "quantize":
        sizes = {key: value for key, value in one.results["runs"].items() if "megabytes" in key}
        assert (
            sizes["quantize, sst, plain, seed 1, megabytes"]
            > 1.2 * (sizes["quantize, sst, int4 by gptq, seed 1, megabytes"])
        )


def test_a_search_for_real(model_folder, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="optional")
    monkeypatch.setattr(runs, "MODEL", str(model_folder))
    monkeypatch.setattr(runs, "TRIALS", 1)
    one = ProgramsStudy(arguments(tmp_path, limit=4))
    found = runs.searched(one, 1)
    assert 1e-4 <= found["lr"] <= 3e-3 and 0 <= found["hidden_dropout_prob"] <= 0.5
    assert found["dev_acc"] in (0, 0.25, 0.5, 0.75, 1)
