"""The GPU's jobs in a few minutes: the important ones first, none begun that would not end."""

import json

import pytest

from benchmarks import core, gpu, whole_commands
from benchmarks.jobs import JOBS, Settings
from benchmarks.match import PEERS


class Hands:
    """A clock that is set by hand, in seconds."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_no_job_begins_that_would_take_longer_than_is_left():
    now = Hands()
    clock = gpu.Clock(2.0, now)
    assert clock.may_start()
    now.time = 50.0  # the first job took as long
    assert clock.may_start()
    now.time = 60.0
    assert clock.may_start()
    now.time = 75.0  # another one of 50 seconds would end at 125
    assert not clock.may_start() and clock.left() == 45.0


def test_what_passes_between_two_jobs_is_no_job():
    now = Hands()
    clock = gpu.Clock(2.0, now)
    assert clock.may_start()
    now.time = 10.0
    clock.ended()
    now.time = 100.0
    assert clock.may_start()


def test_by_default_every_peer_does_all_jobs_on_a_gpu():
    own, args = gpu.get_args([])
    assert own.minutes == 8.0 and args.use_gpu and set(args.jobs) == set(JOBS)
    assert set(args.peers) == set(PEERS) and not (own.skip_tests or own.skip_trainings)
    own, args = gpu.get_args(["--minutes", "3", "--jobs", "step", "--peers", "ours"])
    assert (own.minutes, args.jobs, args.peers) == (3.0, ["step"], ["ours"])


@pytest.fixture
def program(model_folder, data, tmp_path, monkeypatch):
    """Calls of the program on a CPU, whose parts take made-up seconds: {"done": …, "said": …}."""
    now, found = Hands(), {"done": [], "said": [], "out": tmp_path / "g.json"}

    def part(name: str, seconds: float, row: dict) -> dict:
        found["done"].append(name)
        now.time += seconds
        return dict(row)

    times = {"ours": {"median": 1, "min": 1, "max": 1}}
    row = {"work": 1, "seconds": times}
    monkeypatch.setattr(
        core, "measure", lambda job, *_, **how: part(job.name, 50, {"job": job.words, **row})
    )
    monkeypatch.setattr(core, "alone", lambda *_: {"rates": {"float32": {}}, "bandwidth": {}})
    tested = {"outcome": "3 passed", "status": 0, "failed": [], "seconds": 9.0, "workers": 6}
    monkeypatch.setattr(whole_commands, "run_tests", lambda limit: part("tests", 60, tested))
    trained = {
        "command": "python x.py",
        "rows": 9,
        "epoch_seconds": [1.0],
        "seconds": 80.0,
        "status": 0,
    }
    monkeypatch.setattr(whole_commands, "run_training", lambda name, *_: part(name, 80, trained))
    monkeypatch.setattr("benchmarks.gpu.current_commit", lambda: "abc")
    monkeypatch.setattr("benchmarks.timing.current_commit", lambda: "abc")
    words = ["--model_size", str(model_folder), "--data_dir", str(data), "--peers", "ours"]
    args = core.get_args([*words, "--jobs", "sst-8", "step", "--out", str(found["out"])])

    def call(minutes: float, **parts) -> dict:
        found["done"].clear()
        run = gpu.Run(args, str(model_folder), gpu.Clock(minutes, now), found["said"].append)
        run.everything(**{"tests": True, "trainings": True, **parts})
        return found

    return call


def test_the_most_important_parts_come_first_and_one_file_holds_them(program):
    found = program(60)
    assert found["done"] == ["tests", "sst-8", "step", "whole-bf16", "whole-float32"]
    results = json.loads(found["out"].read_text(encoding="utf-8"))
    assert results["tests"]["gpu"]["outcome"] == "3 passed"
    assert results["trainings"]["whole-bf16"]["commit"] == "abc"
    assert [row["name"] for row in results["jobs"]] == ["sst-8", "step"]
    assert program(60)["done"] == [] and "tests: in the file already" in found["said"]
    lines = gpu.summary(results).splitlines()
    assert lines[0] == "pytest -m gpu: 3 passed"
    assert lines[-1].startswith("| one AdamW step | 1.00")


def test_what_there_was_no_time_for_is_done_by_the_same_command_again(program):
    found = program(2)  # the tests, and a job; then another job of 50 seconds is too long
    assert found["done"] == ["tests", "sst-8"]
    for name in ("step", "whole-bf16", "whole-float32"):
        assert f"{name}: no time left: the same command goes on here" in found["said"]
    assert program(2.5)["done"] == ["step", "whole-bf16"]
    assert program(2.5)["done"] == ["whole-float32"]


def test_tests_and_trainings_can_be_skipped(program):
    assert program(60, tests=False, trainings=False)["done"] == ["sst-8", "step"]


def test_tests_are_run_again_when_the_code_is_another_one(program, monkeypatch):
    assert "tests" in program(60)["done"]
    monkeypatch.setattr("benchmarks.gpu.current_commit", lambda: "def")
    assert program(60)["done"] == ["tests"]


@pytest.mark.parametrize("name", ["ours", "ours-eager"])
def test_ours_is_eager_by_its_flag_alone(name, model_folder, data):
    peer = PEERS[name](JOBS["sst-8"], Settings(str(model_folder), str(data), batches=1))
    peer.meter.close()
    assert peer.flags.eager == (name == "ours-eager")
