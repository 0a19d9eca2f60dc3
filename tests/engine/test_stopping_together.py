"""A signal to one of several workers: all save or end at the same place, and the run goes on."""

import os
import signal

import pytest
import torch
from children import in_workers, skip_if_cuda
from course_files import call_main, work_in, write_course, write_model
from pair_runs import flags_of
from slow import slow_unless
from tiny_run import run_path

from classifier import Sentiment
from engine.checkpoint import load_tree
from engine.trainer import Trainer

HOWS = ["", "--shard"]
WORDS = flags_of("sst", 4)  # two epochs of six steps


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    skip_if_cuda()
    root = tmp_path_factory.mktemp("course")
    write_course(root / "data", rows=41)
    write_model(root / "model", dropout=0.1)  # each worker has draws of its own
    return root


@pytest.fixture
def place(course, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    for path in course.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def second_worker_before(monkeypatch, owner, name: str, at: int, action) -> None:
    """It acts when this method is called for the at-th time."""
    method, calls = getattr(owner, name), iter(range(1, 100))

    def call(self, *args, **kwargs):
        if next(calls) == at and os.environ["RANK"] == "1":
            action(self)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def raises(number: int):
    return lambda _: os.kill(os.getpid(), number)


def last(folder: str) -> dict:
    return load_tree(run_path(folder, "*/last.safetensors"))


CASES = [
    (how, where, name)
    for how in HOWS
    for where in ("step", "evaluate")
    for name in ("SIGTERM", "SIGINT")
]
QUICK = ("--shard", "step", "SIGTERM")


@pytest.mark.parametrize("how, where, name", slow_unless(QUICK.__eq__, CASES))
def test_a_signal_to_one_worker_ends_all_at_the_same_place(how, where, name, place, monkeypatch):
    """And the run goes on to the bits of one that nobody stopped."""
    number = getattr(signal, name)
    owner, at, steps = {"step": (Trainer, 9, 3), "evaluate": (Sentiment, 2, 6)}[where]

    def stop():
        second_worker_before(monkeypatch, owner, where, at, raises(number))
        with pytest.raises(SystemExit) as end:
            call_main(monkeypatch, *WORDS, *how.split(), "--runs_dir", "stopped")
        assert end.value.code == 128 + number

    in_workers(stop)
    progress = last("stopped")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, steps)
    for folder, words in (("whole", []), ("stopped", ["--resume"])):
        words = [*WORDS, *how.split(), "--runs_dir", folder, *words]
        in_workers(lambda words=words: call_main(monkeypatch, *words))
    whole, stopped = last("whole")["model"], last("stopped")["model"]
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def be_late(trainer: Trainer) -> None:
    trainer.saved_at -= 3600


REASONS = {"signal": raises(signal.SIGUSR1), "clock": be_late}


@pytest.mark.parametrize(
    "how, reason",
    slow_unless(("--shard", "clock").__eq__, [(how, reason) for how in HOWS for reason in REASONS]),
)
def test_when_one_worker_has_to_save_all_save(how, reason, place, monkeypatch):
    """Clocks differ: the first that is due does not wait for the others in vain."""

    def run():
        saves, save = [], Trainer.save

        def note(self):
            saves.append((self.progress.epoch, self.progress.step))
            save(self)

        monkeypatch.setattr(Trainer, "save", note)
        second_worker_before(monkeypatch, Trainer, "step", 2, REASONS[reason])
        call_main(monkeypatch, *WORDS, *how.split())
        assert saves == [(0, 2), (2, 0)]

    in_workers(run)
