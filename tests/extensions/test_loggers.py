"""The loggers write each epoch's figures, in every task and after a resume, and need no package."""

import json
import sys
from types import SimpleNamespace

import pytest
from course_files import call_main, work_in, write_course, write_model
from tiny_run import run_path

from engine.errors import InputError
from engine.extension import load_extensions

TASKS = {
    "classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": [],
    "sonnet_generation": ["--max_new_tokens", "2", "--patience", "0"],
}
NAMES = {"log_tensorboard": "tensorboard", "log_wandb": "wandb"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model")
    return tmp_path


def run(monkeypatch, task: str, flag: str, *extra) -> list[dict]:
    """Run a task; the lines of its metrics.jsonl."""
    words = ["--data_dir", "data", "--model_size", "model", *TASKS[task], "--extension", flag]
    call_main(monkeypatch, task, *words, "--epochs", "3", *extra)
    lines = run_path("runs", "*/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("task", TASKS)
def test_tensorboard_reads_the_figures_of_each_epoch(task, place, monkeypatch):
    pytest.importorskip("tensorboard")
    records = run(monkeypatch, task, "log_tensorboard")
    found = curves(run_path("runs", "*/tensorboard"))
    names = records[0].keys() - {"epoch"}
    assert found.keys() == names and len(records) == 3
    for name in names:
        expected = [(record["epoch"], pytest.approx(record[name])) for record in records]
        assert found[name] == expected


def test_a_resumed_run_goes_on_in_the_same_curves(place, monkeypatch):
    pytest.importorskip("tensorboard")
    from engine.checkpoint import RunFolder

    save_last = RunFolder.save_last

    def interrupt(folder, tree):
        if tree["progress"]["epoch"] == 2:  # two are logged; saved is the middle of the first
            raise KeyboardInterrupt
        if tree["progress"]["epoch"] == 0:
            save_last(folder, tree)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(RunFolder, "save_last", interrupt)
        run(patch, "classifier", "log_tensorboard", "--save_minutes", "0")
    records = run(monkeypatch, "classifier", "log_tensorboard", "--resume")
    found = curves(run_path("runs", "*/tensorboard"))
    assert [epoch for epoch, _ in found["dev_acc"]] == [0, 1, 2]
    assert [value for _, value in found["train_loss"]] == pytest.approx(
        [record["train_loss"] for record in records]
    )


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in that notes what it is told; the real one is tried below where it is installed."""
    told = SimpleNamespace(runs=[], logged=[], run=None)

    def init(**settings):
        told.runs.append(settings)
        told.run = SimpleNamespace(log=told.logged.append)
        return told.run

    def finish():
        told.run = None

    told.init, told.finish = init, finish
    monkeypatch.setitem(sys.modules, "wandb", told)
    return told


@pytest.mark.parametrize("task", TASKS)
def test_wandb_is_told_the_settings_and_each_epoch(task, fake_wandb, place, monkeypatch):
    records = run(monkeypatch, task, "log_wandb:project=course,mode=offline")
    [settings] = fake_wandb.runs
    assert settings["project"] == "course" and settings["mode"] == "offline"
    assert settings["id"] == run_path("runs").name and settings["resume"] == "allow"
    assert settings["config"]["seed"] == 11711
    expected = [{k: v for k, v in record.items() if k != "epoch"} for record in records]
    assert fake_wandb.logged == expected and len(expected) == 3


def test_wandb_gets_a_run_for_each_data_set(fake_wandb, place, monkeypatch):
    words = ["--data_dir", "data", "--model_size", "model", "--fine-tune-mode", "full-model"]
    call_main(monkeypatch, "classifier", *words, "--epochs", "1", "--extension", "log_wandb")
    assert len({settings["id"] for settings in fake_wandb.runs}) == 2


def test_the_real_wandb_writes_a_run_offline(place, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        run(monkeypatch, "classifier", "log_wandb:mode=offline")
    finally:
        wandb.finish()
    [written] = run_path("runs").glob("wandb/offline-run-*/*.wandb")
    assert written.stat().st_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_the_remedy(name, monkeypatch):
    package = NAMES[name]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"^{name} needs {package}: pip install {package}$"):
        load_extensions([name])


def test_an_unknown_mode_is_refused(fake_wandb):
    with pytest.raises(InputError, match="expected one of online, offline, disabled"):
        load_extensions(["log_wandb:mode=on"])
