"""The kill storm finds what is wrong: planted faults are reported, and nothing else is."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from children import skip_if_cuda
from storm import chains
from storm.chains import wrong_end
from storm.jobs import JOBS, turns
from storm.outputs import differences, held_locks
from storm.storm import Storm

from engine import checkpoint, errors, files, resuming, trees
from engine.files import ROOT
from engine.run_lock import RunLock
from engine.signals import Asked
from engine.trees import save_tree

# -- outputs -----------------------------------------------------------------------------------


def write_run(folder: Path, **changed) -> Path:
    """A run's files; changed: weight, seconds, and whether something is left over."""
    run = folder / "runs" / "tiny"
    run.mkdir(parents=True)
    metrics = {"epoch": 0, "dev": 0.5, "seconds": changed.get("seconds", 1.0)}
    weight = torch.tensor([changed.get("weight", 1.0)])
    digest = save_tree(run / "best.safetensors", {"metrics": metrics, "model": {"w": weight}})
    best = {"epoch": 0, "digest": changed.get("digest", digest)}
    save_tree(run / "last.safetensors", {"best": best, "progress": {"history": [metrics]}})
    if "left" in changed:
        (run / changed["left"]).write_bytes(b"half")
    return folder


def test_times_are_no_difference(tmp_path):
    assert differences(write_run(tmp_path / "a"), write_run(tmp_path / "b", seconds=2.0)) == []


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"weight": 1.0000001}, "runs/tiny/best.safetensors: differs"),
        (
            {"left": ".last.safetensors.1-abc.x.tmp"},
            "runs/tiny/.last.safetensors.1-abc.x.tmp: left",
        ),
        ({"digest": "0" * 32}, "they are of two attempts"),
    ],
)
def test_a_difference_is_named(changed, said, tmp_path):
    found = differences(write_run(tmp_path / "a"), write_run(tmp_path / "b", **changed))
    assert len(found) == 1 and said in found[0]


def test_a_file_that_is_cut_is_named(tmp_path):
    expected, found = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    best = found / "runs" / "tiny" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    assert any(
        "best.safetensors: no whole checkpoint" in line or "best" in line
        for line in differences(expected, found)
    )


def test_a_held_lock_is_named_and_a_free_one_is_not(tmp_path):
    with RunLock(tmp_path / "run"):
        assert held_locks(tmp_path) == ["run/.lock: still held"]
    assert held_locks(tmp_path) == []


# -- ends --------------------------------------------------------------------------------------

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


@pytest.mark.parametrize(
    "code, sent, said, right",
    [
        (0, [], [], True),
        (0, [], ["a line"], False),
        (1, [], ["Traceback"], False),
        (-9, [KILL], [], True),
        (-9, [], [], False),
        (143, [TERM], ["stopped by SIGTERM: what was saved is whole"], True),
        (143, [TERM], ["Traceback", "stopped by SIGTERM: what was saved is whole"], False),
        (143, [INT], ["stopped by SIGTERM: what was saved is whole"], False),
        (143, [TERM, KILL], ["stopped by SIGTERM: what was saved is whole"], True),
        (130, [INT], ["stopping where nothing is half done", "interrupted: all is well"], True),
        (-15, [TERM], [], False),
        (2, [TERM], ["error: a checkpoint is damaged"], False),
        (2, [], ["error: --resume: no last.safetensors"], True),
    ],
)
def test_the_end_of_a_command_is_judged(code, sent, said, right):
    started = SimpleNamespace(code=code, said=said, printed=True)
    assert (wrong_end(started, sent, True, 1) == []) is right


def test_every_job_has_its_turn():
    drawn = turns(JOBS)
    assert [next(drawn) for _ in JOBS] == JOBS


# -- faults ------------------------------------------------------------------------------------


def forget_random_state(patch) -> None:
    patch.setattr(resuming, "set_random_state", lambda *_: None)


def write_in_place(patch) -> None:
    @contextlib.contextmanager
    def in_place(path):
        Path(path).write_bytes(b"half")
        time.sleep(0.1)
        yield Path(path)

    patch.setattr(trees, "atomic_path", in_place)
    patch.setattr(chains, "SIGNALS", [KILL])


def leave_files_behind(patch) -> None:
    patch.setattr(checkpoint, "remove_leftovers", lambda *_: None)
    patch.setattr(files, "remove_leftovers", lambda *_: None)
    patch.setattr(files, "sync", lambda path: time.sleep(0.02))
    patch.setattr(chains, "SIGNALS", [KILL])


def die_by_signals(patch) -> None:
    patch.setattr(errors, "stop_signals", contextlib.nullcontext)
    patch.setattr("engine.training.deferred", lambda: contextlib.nullcontext(Asked()))
    patch.setattr(chains, "SIGNALS", [TERM])


FAULTS = {
    forget_random_state: ".safetensors: differs",
    write_in_place: "no whole checkpoint",
    leave_files_behind: ".tmp: left over",
    die_by_signals: "exit code -15",
}


@pytest.fixture(scope="module")
def storm(tmp_path_factory):
    skip_if_cuda()
    storm = Storm([job for job in JOBS if job.name == "sst"], tmp_path_factory.mktemp("storm"), 5)
    storm.prepare()
    storm.reference(storm.jobs[0])
    return storm


@pytest.mark.slow
@pytest.mark.parametrize("plant", FAULTS)
def test_a_planted_fault_is_found(plant, storm, monkeypatch):
    plant(monkeypatch)
    first = 100 * (1 + list(FAULTS).index(plant))
    found = []
    for number in range(first, first + 10):
        found = storm.chain(number).problems
        if found:
            break
    assert any(FAULTS[plant] in problem for problem in found), found


@pytest.mark.slow
def test_a_short_storm_finds_nothing_and_counts_its_kills(tmp_path):
    words = ["--minutes", "0.33", "--seed", "3", "--jobs", "sst", "head", "sonnet"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.storm", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total = done.stdout.splitlines()
    cells = [int(cell) for cell in total.strip("| ").split(" | ")[1:]]
    chains, starts, *kills, wrong = cells
    assert wrong == 0 and chains >= 1 and starts > chains and sum(kills) > 0
