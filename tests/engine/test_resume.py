"""Killed at any moment, a run leaves its last good state and resumes to the very same bits."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from children import at_write, in_child
from course_files import call_main, work_in, write_course, write_model
from tiny_run import run_path

from engine import files
from engine.checkpoint import load_tree
from engine.files import ROOT

RUNS = {
    "sst": ["classifier", "--fine-tune-mode", "full-model", "--dataset", "sst"],
    "features": ["classifier", "--fine-tune-mode", "last-linear-layer", "--dataset", "cfimdb"],
    "paraphrase": ["paraphrase_detection", "--schedule", "linear", "--warmup", "0.2"],
    "sonnet": ["sonnet_generation", "--max_new_tokens", "8", "--accumulate", "2", "--clip", "1"],
}
FLAGS = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--lr", "1e-3"]
FLAGS += ["--save_minutes", "0"]  # after every step


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_course(folder / "data", rows=24)
    write_model(folder / "model", dropout=0.1)  # so that the random state matters
    return folder


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    """A folder to run in, whose data/ and model/ are the common ones."""
    for name in ("data", "model"):
        (tmp_path / name).symlink_to(originals / name)
    work_in(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(originals, tmp_path_factory):
    """What each run ends with when nothing happens, and the number of files it writes."""
    found = {}

    def end_of(name: str):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            for part in ("data", "model"):
                (folder / part).symlink_to(originals / part)
            with pytest.MonkeyPatch.context() as monkeypatch:
                work_in(monkeypatch, folder)
                writes, sync = [], files.sync
                monkeypatch.setattr(files, "sync", lambda path: (writes.append(path), sync(path)))
                start(monkeypatch, name)
                found[name] = result(folder), len(writes)
        return found[name]

    return end_of


def start(monkeypatch, name: str, *extra) -> None:
    program, *flags = RUNS[name]
    call_main(monkeypatch, program, *FLAGS, *flags, *extra)


def result(folder: Path) -> dict:
    """Weights, figures and predictions of the one run in a folder, without times."""
    tree = load_tree(run_path(folder, "runs/*/best.safetensors"))
    lines = run_path(folder, "runs/*/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "weights": {n: sha256(t.numpy().tobytes()).hexdigest() for n, t in tree["model"].items()},
        "figures": [{**json.loads(line), "seconds": 0} for line in lines],
        "predictions": {
            p.name: sha256(p.read_bytes()).hexdigest() for p in (folder / "predictions").iterdir()
        },
    }


def check_whole(folder: Path) -> None:
    """Every file that stands under its own name can be read to its end."""
    for path in folder.glob("runs/*/*.safetensors"):
        load_tree(path)
    for path in folder.glob("runs/*/config.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.glob("runs/*/metrics.jsonl"):
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def go_on(monkeypatch, name: str, folder: Path) -> None:
    """As a person would: resume, or start anew if nothing was saved before the end came."""
    saved = list(folder.glob("runs/*/last.safetensors"))
    start(monkeypatch, name, *(["--resume"] if saved else []))


def some(name: str, total: int) -> list[int]:
    """Every moment of the first run, a few of the others: early, in the middle, last."""
    if name == "sst":
        return list(range(1, total + 1))
    return sorted({1, 4, 5, 6, total // 3, total // 2, total // 2 + 1, total - 2, total})


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_any_write_resumes_to_the_same_bits(
    name, originals, uninterrupted, tmp_path, monkeypatch
):
    expected, writes = uninterrupted(name)
    for number in some(name, writes):
        folder = tmp_path / str(number)
        folder.mkdir()
        for part in ("data", "model"):
            (folder / part).symlink_to(originals / part)
        with monkeypatch.context() as patch:
            work_in(patch, folder)
            with patch.context() as kill:
                at_write(kill, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
                status = in_child(lambda kill=kill: start(kill, name))
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            check_whole(folder)
            go_on(patch, name, folder)
        assert result(folder) == expected, f"killed at write {number} of {writes}"
        leftovers = [p for p in folder.glob("runs/*/.*.tmp")]
        assert leftovers == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_ctrl_c_and_a_full_disk_leave_the_last_good_state(
    error, share, uninterrupted, place, monkeypatch, capsys
):
    expected, writes = uninterrupted("sonnet")

    def fail():
        raise error

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        at_write(patch, max(1, round(share * writes)), fail)
        start(patch, "sonnet")
    assert stop.value.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    check_whole(place)
    assert not list(place.rglob(".*.tmp"))
    go_on(monkeypatch, "sonnet", place)
    assert result(place) == expected


def test_a_checkpoint_that_does_not_fit_the_disk_ends_in_one_line(
    uninterrupted, place, monkeypatch
):
    """The operating system refuses the bytes, deep inside the library that writes them."""
    expected, _ = uninterrupted("sst")

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        start(monkeypatch, "sst")

    status = in_child(limited)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 2
    assert not list(place.glob("runs/*/*.safetensors")) and not list(place.rglob(".*.tmp"))
    go_on(monkeypatch, "sst", place)
    assert result(place) == expected


def test_the_real_command_interrupted_by_ctrl_c_resumes(uninterrupted, place, monkeypatch):
    program, *flags = RUNS["sst"]
    command = [sys.executable, str(ROOT / f"{program}.py"), *FLAGS, *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not list(place.glob("runs/*/last.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()
    assert "Traceback" not in said
    if process.returncode != 0:  # it was not faster than the signal
        assert process.returncode == 130 and "--resume" in said
    check_whole(place)
    go_on(monkeypatch, "sst", place)
    assert result(place) == uninterrupted("sst")[0]


def test_a_finished_run_resumes_to_its_own_predictions(uninterrupted, place, monkeypatch, capsys):
    start(monkeypatch, "paraphrase")
    for path in (place / "predictions").iterdir():
        path.unlink()
    start(monkeypatch, "paraphrase", "--resume")
    assert "this run is finished" in capsys.readouterr().out
    assert result(place) == uninterrupted("paraphrase")[0]


def test_a_failed_second_run_leaves_the_first_one_s_best_and_predictions(place, monkeypatch):
    """The same flags again, and the disk is full at once."""
    start(monkeypatch, "sst")
    before = result(place)

    def fail():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        at_write(patch, 3, fail)
        start(patch, "sst")
    assert result(place) == before


def test_resuming_on_other_data_is_refused(originals, place, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        at_write(patch, 5, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        start(patch, "sst")
    (place / "data").unlink()
    write_course(place / "data", rows=30)
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "sst", "--resume")
    assert stop.value.code == 2
    assert "have changed since it was written: dev rows, train rows" in capsys.readouterr().err


def test_resuming_with_other_flags_is_not_taken_for_the_same_run(place, monkeypatch, capsys):
    start(monkeypatch, "sst")
    with pytest.raises(SystemExit):
        start(monkeypatch, "sst", "--resume", "--lr", "5e-4")
    said = capsys.readouterr().err
    assert "--resume: no runs/" in said and run_path("runs").name in said


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(
    uninterrupted, place, monkeypatch
):
    expected, _ = uninterrupted("sst")
    torch.manual_seed(123)  # what was drawn before does not matter
    start(monkeypatch, "sst")
    assert result(place) == expected
    start(monkeypatch, "sst", "--seed", "1", "--runs_dir", "others")
    other = load_tree(run_path("others", "*/best.safetensors"))["model"]
    name = "sentiment_head.weight"
    assert other[name].numpy().tobytes() != expected["weights"][name]
