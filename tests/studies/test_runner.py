"""Runs are done once, some at a time, by one process or several; a failed one stops no other."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors import InputError
from engine.files import ROOT
from studies import runner
from studies.__main__ import get_args, main
from studies.entries import load
from studies.job import Job, RunFailed
from studies.records import Records
from studies.runner import Runner

SAMPLE = ROOT / "data" / "sample"


def arguments(tmp_path, **change):
    flags = {"limit": 10, "use_gpu": False, "jobs": 1, "storage": None, "data_dir": SAMPLE}
    return SimpleNamespace(**flags | {"folder": str(tmp_path / "work")} | change)


@pytest.fixture
def done(monkeypatch):
    """Runs without training: a rate's figure is the rate itself; they are noted."""
    noted, lock = [], threading.Lock()

    def work(job: Job):
        with lock:
            noted.append(str(job.run))
        return {job.run.study.figure: job.run.lr or 0.5}, []

    for kind in runner.KINDS:
        monkeypatch.setitem(runner.KINDS, kind, work)
    monkeypatch.setattr(runner, "POLL", 0.01)
    return noted


def run(tmp_path, names=("modes-sst",), **change) -> list[dict]:
    records = Records(tmp_path / "results")
    Runner(load(names), records, arguments(tmp_path, **change)).run()
    return records.read("followups")


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_run_is_done_once_and_an_ended_study_has_none_left(jobs, done, tmp_path):
    records = run(tmp_path, jobs=jobs)
    assert len(records) == len(done) == len(set(done)) == 2 * (2 + 2)
    assert {each["lr"] for each in records if each["seeds"] != [1]} == {0.003, 0.001}
    assert run(tmp_path, jobs=jobs) == records and len(done) == 8


@pytest.mark.parametrize("storage", [None, "sqlite:///{}/studies.db"])
def test_two_processes_share_the_runs(storage, done, tmp_path):
    if storage:
        pytest.importorskip("sqlalchemy", reason="optional")
        storage = storage.format(tmp_path)
    machines = [tmp_path / "a", tmp_path / "b"] if storage else [tmp_path, tmp_path]
    args = [arguments(machine, storage=storage) for machine in machines]
    shared = [Records(machine / "results") for machine in machines]
    studies = load(["modes-sst"])
    peers = [Runner(studies, *pair) for pair in zip(shared, args, strict=True)]
    threads = [threading.Thread(target=peer.run) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(set(done)) == 8
    for records in shared:  # each has what the other did
        assert len(records.read("followups")) == 8


def test_a_failed_run_is_named_at_the_end_and_due_again(done, tmp_path, monkeypatch):
    def fail(job):
        if job.run.contestant.name == "full-model":
            raise RunFailed("exit code 2: no such file")
        return {"dev_acc": 0.5}, []

    with monkeypatch.context() as patch:
        patch.setitem(runner.KINDS, "fine-tune", fail)
        with pytest.raises(InputError, match=r"2 runs failed: modes-sst: full-model.*no such file"):
            run(tmp_path)
    assert len(Records(tmp_path / "results").read("followups")) == 4
    assert len(run(tmp_path)) == 8 and len(done) == 4


def test_a_real_run_says_all_about_itself(tmp_path, monkeypatch, capsys):
    words = ["run", "paraphrase-1-epoch", "--limit", "40", "--data_dir", str(SAMPLE)]
    words += ["--folder", str(tmp_path / "work"), "--results", str(tmp_path), "--uncommitted"]
    [study] = load(["paraphrase-1-epoch"])
    words_alone = (study.contestant("bag of words"),)
    small = replace(study, contestants=words_alone, baseline="bag of words")
    monkeypatch.setattr("studies.__main__.load", lambda *_, **__: [small])
    monkeypatch.setattr("sys.argv", ["studies", *words])
    main()
    assert "1 runs are missing" in capsys.readouterr().out
    [record] = Records(tmp_path).read("followups")
    assert 0 <= record["figures"]["dev_acc"] <= 1 and record["settings"]["limit"] == 40
    assert record["seconds"] > 0.5 and 50 < record["peak_mb"] < 5000
    [command] = record["commands"]
    assert command.startswith("python -m studies.baselines bag-of-words --task paraphrase")
    assert {"commit", "hardware", "torch", "date", "jobs"} <= record.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--results", "taken"], "taken: a file, expected a folder: choose another one"),
        (["--folder", "taken"], "taken: a file, expected a folder: choose another one"),
        (["--model", "gone"], "--model gone: no config.json there: give a model's folder"),
    ],
)
def test_what_would_stop_a_run_after_its_training_is_refused_before(
    words, said, tmp_path, monkeypatch, refused
):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    monkeypatch.setattr("studies.__main__.Runner", None)
    monkeypatch.setattr("sys.argv", ["studies", "run", "modes-sst", "--uncommitted", *words])
    with refused(said):
        main()


def test_what_is_tried_does_not_mix_with_the_results():
    assert get_args(["run"]).results == "studies/results/"
    for words in (["--limit", "5"], ["--model", "x"], ["--data_dir", "data/sample"]):
        assert get_args(["run", *words]).results == "runs/studies/tried/"


@pytest.mark.parametrize("words", [["--limit", "0"], ["--jobs", "0"]])
def test_a_number_below_one_is_refused(words):
    with pytest.raises(InputError, match=f"{words[0]} 0: expected at least 1"):
        get_args(["run", *words])
