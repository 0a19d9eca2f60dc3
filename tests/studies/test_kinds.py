"""Every kind of run for real, with a tiny model on the sample: its programs, figures and record."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from course_files import write_model

pytest.importorskip("programs.ensemble.ensemble", reason="no programs/ here")

from engine.files import ROOT
from engine.prediction_files import write_predictions
from studies import kinds
from studies.baselines import bigram_of, unigram_of
from studies.entries import load
from studies.kinds import KINDS, accuracy
from studies.records import Records
from studies.runner import Runner

SAMPLE = ROOT / "data" / "sample"
QUICK = {  # contestants of each study that make no difference to how its runs are made
    "augment-sst": ("swap",),
    "quantize-sst": ("plain", "int4 by gptq"),
    "preferences-sonnet": ("plain", "dpo"),
    "preferences-paraphrase": ("orpo",),
    "grpo-sonnet": ("grpo",),
    "distill-sst": ("plain", "3 teachers"),
    "speculative-sonnet": ("plain", "speculative:gamma=2"),
    "ensemble-paraphrase": ("plain", "2 seeds in both orders"),
    "pretraining-paraphrase": ("random weights", "bag of words"),
    "search-sst": ("plain", "the best trial's flags", "the best trial itself"),
    "optimizers-sst": ("adamw", "muon"),
}
SHORT = "--epochs 1 --dev_samples 1 --max_new_tokens 16"


def shortened(study):
    """Its budget cut to one epoch, and its contestants to the quick ones."""
    few = tuple(study.contestant(name) for name in QUICK[study.name])
    if study.name == "grpo-sonnet":
        few = tuple(replace(one, flags=f"{one.flags} {SHORT}") for one in few)
    epochs = [] if study.name.startswith("augment") else ["--epochs 1"]
    flags = " ".join([study.flags, *epochs])
    seeds = (1, 2) if study.name.startswith(("ensemble", "search")) else (1,)
    lrs = study.lrs[:1]
    return replace(study, contestants=few, flags=flags, bf16=False, seeds=seeds, lrs=lrs)


@pytest.mark.slow
def test_every_kind_for_real(tmp_path, monkeypatch):
    """On a few rows; the studies share what checkpoints they need, as ever."""
    pytest.importorskip("optuna", reason="optional")
    monkeypatch.setattr(kinds, "TRIALS", 1)
    monkeypatch.setattr("programs.quantize.job.TIMED_ROUNDS", 1)
    model = write_model(tmp_path, hidden_size=64, positions=1024)  # int4 has groups of 64 inputs
    studies = [shortened(study) for study in load(list(QUICK), model=str(model))]
    records, work = Records(tmp_path / "results"), str(tmp_path / "work")
    args = {"limit": 8, "use_gpu": False, "jobs": 2, "storage": None, "data_dir": SAMPLE}
    Runner(studies, records, SimpleNamespace(**args, folder=work)).run()
    found = [record for suite in {s.suite for s in studies} for record in records.read(suite)]
    for name, contestants in QUICK.items():
        of_it = [record for record in found if record["study"] == name]
        assert {record["contestant"] for record in of_it} == set(contestants), name
        for record in of_it:
            check(record)
    quantized = figures(found, "quantize-sst")
    assert quantized["plain"]["megabytes"] > 1.2 * quantized["int4 by gptq"]["megabytes"]
    [tuned] = [each for each in found if each["contestant"] == "the best trial's flags"]
    words = shlex.split(tuned["commands"][-1])
    best = figures(found, "search-sst")["the best trial itself"]
    assert float(words[words.index("--lr") + 1]) == best["lr"]


def check(record: dict) -> None:
    """Its figures are possible, and those of its best epoch."""
    assert record["seconds"] > 0 and record["peak_mb"] > 50
    assert record["commands"] and all(line.startswith("python ") for line in record["commands"])
    for metric, value in record["figures"].items():
        low, high = {"dev_perplexity": (1, 1e5), "chrf": (0, 100)}.get(metric, (0, 99))
        assert low <= value <= high, (record["study"], metric)
    if record["epochs"] and record["study"] != "augment-sst":  # that has the last epoch's
        [(metric, value)] = record["figures"].items()
        best = min if metric == "train_loss" else max
        assert value == best(epoch[metric] for epoch in record["epochs"])


def figures(records: list[dict], study: str) -> dict[str, dict]:
    return {each["contestant"]: each["figures"] for each in records if each["study"] == study}


def test_each_kind_is_tried():
    tried = [study for study in load() if study.name in QUICK]
    assert {one.kind or study.kind for study in tried for one in study.contestants} == set(KINDS)


def test_accuracy_is_that_of_the_prediction_file(tmp_path):
    path = tmp_path / "dev.csv"
    write_predictions(path, "Predicted_Sentiment", ["a", "b", "c"], [1, 0, 4])
    assert accuracy(path, {"c": "4", "a": "1", "b": "2"}) == pytest.approx(2 / 3)


def test_the_probabilities_of_words_sum_to_one_and_favour_what_was_seen():
    texts, vocabulary = [[0, 1, 2, 1, 2], [0, 2, 2]], 5
    single = unigram_of(texts, vocabulary)
    pair = bigram_of(texts, single)
    assert [single(0, w) for w in range(5)] == pytest.approx(
        [1 / 11, 3 / 11, 5 / 11, 1 / 11, 1 / 11]
    )
    for h in range(vocabulary):
        assert sum(pair(h, w) for w in range(vocabulary)) == pytest.approx(1)
    # after 1 comes 2, twice: c = 2, T = 1
    assert pair(1, 2) == pytest.approx((2 + single(1, 2)) / 3)
    assert pair(4, 1) == single(4, 1)  # 4 was never seen


@pytest.mark.slow
def test_a_killed_command_leaves_no_child_and_the_next_one_does_the_rest(tmp_path):
    words = ["modes-sst", "--limit", "8", "--data_dir", SAMPLE, "--results", tmp_path / "results"]
    words += ["--folder", tmp_path / "work", "--uncommitted", "--jobs", "2"]
    command = list(map(str, [sys.executable, "-m", "studies", "run", *words]))
    records = Records(tmp_path / "results")
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(records.read("followups")) < 2:
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = records.read("followups")
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{8 - len(before)} runs are missing" in said
    after = records.read("followups")
    assert after[: len(before)] == before and len(after) == 8
    assert len({json.dumps([r["contestant"], r["lr"], r["seeds"]]) for r in after}) == 8
