"""The GPU's jobs in a few minutes: the important ones first, none begun that would not end."""

import json

import pytest

from benchmarks import core, gpu
from benchmarks.jobs import JOBS


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
    assert not clock.may_start()


def test_by_default_all_jobs_are_done_on_a_gpu_by_recorded_and_eager_steps():
    minutes, args = gpu.get_args([])
    assert minutes == 8.0 and args.use_gpu and set(args.jobs) == set(JOBS)
    assert {"starter", "transformers", "ours", "ours-eager"} <= set(args.peers)
    minutes, args = gpu.get_args(["--minutes", "3", "--jobs", "step", "--peers", "ours"])
    assert (minutes, args.jobs, args.peers) == (3.0, ["step"], ["ours"])


def test_what_there_was_no_time_for_is_done_by_the_same_command_again(
    model_folder, data, tmp_path, monkeypatch
):
    said, done = [], []

    def measure(job, *_, **how):
        done.append(job.name)
        return {"job": job.words, "work": 1, "seconds": {"ours": {"median": 1, "min": 1, "max": 1}}}

    monkeypatch.setattr(core, "measure", measure)
    monkeypatch.setattr(core, "alone", lambda *_: {"rates": {"float32": {}}, "bandwidth": {}})
    words = ["--model_size", str(model_folder), "--data_dir", str(data), "--peers", "ours"]
    args = core.get_args([*words, "--jobs", "sst-8", "step", "--out", str(tmp_path / "g.json")])
    answers = iter([True, False, True])
    for _ in range(2):
        core.run_size(args, str(model_folder), said.append, lambda: next(answers))
    assert done == ["sst-8", "step"]
    assert "step: no time left: the same command goes on here" in said
    jobs = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))["jobs"]
    assert [row["name"] for row in jobs] == ["sst-8", "step"]


@pytest.mark.parametrize("name", ["ours", "ours-eager"])
def test_ours_is_eager_by_its_flag_alone(name, model_folder, data):
    from benchmarks.jobs import Settings
    from benchmarks.match import PEERS

    peer = PEERS[name](JOBS["sst-8"], Settings(str(model_folder), str(data), batches=1))
    peer.meter.close()
    assert peer.flags.eager == (name == "ours-eager")
