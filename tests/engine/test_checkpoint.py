"""Files of a run: exact, whole or not at all, and never code."""

import json
import subprocess
from argparse import Namespace

import pytest
import torch
from tiny_run import Averager, folder, run, run_path, same_bits, stopped_run, weights

from engine.checkpoint import (
    RunFolder,
    load_checkpoint,
    load_model,
    load_trainable_state,
    load_tree,
    plot_curves,
    save_tree,
    trainable_state,
)
from engine.errors import InputError
from engine.provenance import current_commit
from engine.settings import Settings

HISTORY = [
    {"epoch": 0, "train_loss": 1.5, "dev_acc": 0.4},
    {"epoch": 1, "train_loss": 1.0, "dev_acc": 0.6},
]


# -- what is saved of a model ------------------------------------------------------------------


def test_frozen_parameters_are_left_out_and_everything_else_is_in():
    model = Averager()
    model.register_buffer("steps", torch.zeros(()))
    model.gpt.requires_grad_(False)
    assert set(trainable_state(model)) == {"head.weight", "head.bias", "steps"}


def test_trainable_state_comes_back():
    one, other = Averager(seed=1), Averager(seed=2)
    load_trainable_state(other, trainable_state(one), "x")
    assert same_bits(weights(one), weights(other))


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_the_state_of_another_model_is_refused(change):
    state = trainable_state(Averager())
    if change == "missing":
        del state["head.bias"]
    elif change == "extra":
        state["more"] = torch.zeros(1)
    else:
        state["head.bias"] = torch.zeros(4)
    with pytest.raises(InputError, match="x: a checkpoint of another model: 1 tensors differ"):
        load_trainable_state(Averager(), state, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    state = trainable_state(Averager())
    state["head.bias"] = torch.tensor([0.0, value, 0.0])
    with pytest.raises(InputError, match=r"x: 1 of 3 tensors hold NaN or infinity.*head\.bias"):
        load_trainable_state(Averager(), state, "x")


# -- other versions ----------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path):
    """(path, tree) of the last file of a run that stopped after its first epoch of two."""
    path = stopped_run(tmp_path)
    return path, load_tree(path)


def changes() -> dict:
    """What another version may have written, by name: functions that change a last file's tree."""
    return {
        "an extra field": lambda tree: tree["progress"].update(tokens=5),
        "a missing field": lambda tree: tree["progress"].pop("epochs_without_improvement"),
        "a field of another type": lambda tree: tree["progress"].update(epoch="one"),
        "no progress": lambda tree: tree.pop("progress"),
        "progress as a list": lambda tree: tree.update(progress=[1, 2]),
        "no random state": lambda tree: tree.pop("random"),
        "no weights": lambda tree: tree.pop("model"),
        "weights as numbers": lambda tree: tree["model"].update({"head.bias": 5}),
        "no optimizer": lambda tree: tree.pop("optimizer"),
        "an optimizer of other groups": lambda tree: tree["optimizer"].update(param_groups=[]),
        "an optimizer without state": lambda tree: tree["optimizer"].pop("state"),
        "an optimizer as a list": lambda tree: tree["optimizer"].update(param_groups=[5]),
        "a random state of another size": lambda tree: tree.update(random=[torch.ones(3)]),
        "no inputs": lambda tree: tree.pop("inputs"),
        "no fingerprint of the rows": lambda tree: tree["inputs"].pop("train rows"),
        "inputs as a list": lambda tree: tree.update(inputs=["train rows"]),
    }


@pytest.mark.parametrize("name", changes())
def test_the_state_of_a_run_from_another_version_is_refused(name, unfinished, tmp_path):
    path, tree = unfinished
    changes()[name](tree)
    save_tree(path, tree)
    with pytest.raises(InputError, match=r"last\.safetensors: .*(version|model|changed|digests)"):
        run(Averager(), tmp_path, epochs=2, resume=True)


def test_the_same_state_unchanged_is_taken(unfinished, tmp_path):
    path, tree = unfinished
    save_tree(path, tree)
    assert run(Averager(), tmp_path, epochs=2, resume=True).finished


@pytest.mark.parametrize("rows, taken", [("its own", True), ("others", False)])
def test_a_file_from_before_the_rows_were_inputs_is_taken_with_its_own_rows(
    rows, taken, unfinished, tmp_path
):
    path, tree = unfinished
    fingerprint = tree["inputs"].pop("train rows")
    save_tree(path, tree | {"data": fingerprint if taken else "0" * 64})
    if taken:
        assert run(Averager(), tmp_path, epochs=2, resume=True).finished
    else:
        with pytest.raises(InputError, match=r"last\.safetensors: the training data has changed"):
            run(Averager(), tmp_path, epochs=2, resume=True)


@pytest.mark.parametrize("tree", [{}, {"settings": 5}, {"settings": {}, "model": []}])
def test_a_best_file_without_its_parts_is_refused(tree, tmp_path):
    save_tree(tmp_path / "b", {"task": "tiny", **tree})
    with pytest.raises(InputError, match="b: "):
        load_model(tmp_path / "b", "tiny", lambda settings, pretrained: Averager())


def test_settings_that_the_model_cannot_take_are_refused(tmp_path):
    save_tree(tmp_path / "b", {"task": "tiny", "settings": {}, "model": {}})

    def build_model(settings, pretrained):
        return settings.gpt_config

    with pytest.raises(InputError, match=r"b: settings of another version.*gpt_config"):
        load_model(tmp_path / "b", "tiny", build_model)


# -- the best epoch ----------------------------------------------------------------------------


def test_the_best_file_rebuilds_the_model_from_its_own_settings(tmp_path):
    """Without the weights that GPT-2 came from, since the file has them all."""
    asked = []

    def build_model(settings, pretrained):
        asked.append((settings, pretrained))
        return nn_with_backbone()

    model = nn_with_backbone()
    folder = RunFolder(tmp_path, "tiny", "x", Settings({"lr": 0.5}))
    with folder.writing():
        folder.save_best(model, {"epoch": 3})
    found, settings = load_model(run_path(tmp_path, "*/best.safetensors"), "tiny", build_model)
    assert same_bits(weights(found), weights(model))
    assert asked == [(Namespace(lr=0.5), False)] and settings.lr == 0.5


def nn_with_backbone():
    """A model whose parameters are named as a task's are."""
    model = torch.nn.Module()
    model.gpt = torch.nn.Module()
    model.gpt.word_embedding = torch.nn.Embedding(5, 3)
    return model


def test_a_frozen_backbone_is_asked_for_again(tmp_path):
    model = nn_with_backbone()
    model.gpt.requires_grad_(False)
    model.head = torch.nn.Linear(3, 2)
    folder = RunFolder(tmp_path, "tiny", "x", Settings({}))
    with folder.writing():
        folder.save_best(model, {})
    asked = []

    def build_model(settings, pretrained):
        asked.append(pretrained)
        return model

    load_model(run_path(tmp_path, "*/best.safetensors"), "tiny", build_model)
    assert asked == [True]


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    save_tree(tmp_path / "b", {"task": "sst"})
    with pytest.raises(InputError, match="a checkpoint of task 'sst', expected 'sonnet'"):
        load_checkpoint(tmp_path / "b", "sonnet")


# -- the folder --------------------------------------------------------------------------------


def test_settings_that_change_the_result_change_the_folder_and_others_do_not(tmp_path):
    base = {"lr": 0.1, "epochs": 2, "use_gpu": False, "dev_out": "a", "extension": []}

    def path(**change):
        return RunFolder(tmp_path, "sst", "full", Settings(base | change)).path

    assert path().name.startswith("sst-full-")
    for change in ({"use_gpu": True}, {"dev_out": "b"}, {"resume": True}, {"save_minutes": 1}):
        assert path(**change) == path()
    for change in ({"lr": 0.2}, {"epochs": 3}, {"extension": ["lora"]}, {"seed": 1}):
        assert path(**change) != path()


def test_a_run_leaves_its_settings_its_figures_and_its_curves(tmp_path):
    run(Averager(), tmp_path, epochs=2)
    path = run_path(tmp_path)
    assert sorted(p.name for p in path.glob("[!.]*")) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "last.safetensors",
        "metrics.jsonl",
        "resources.json",
    ]
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert config["task"] == "tiny" and config["epochs"] == 2
    assert config["commit"] == current_commit()
    assert config["command"].startswith("python ")
    resources = json.loads((path / "resources.json").read_text(encoding="utf-8"))
    assert resources["hardware"] and resources["peak_mb"] > 50
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_worker_that_is_not_the_main_one_writes_nothing(tmp_path):
    other = RunFolder(tmp_path, "tiny", "x", Settings({}), writes=False)
    other.start(resume=False)
    other.save_best(Averager(), {})
    other.save_last({"step": 1})
    other.write_metrics(HISTORY)
    other.write_resources(torch.device("cpu"))
    other.draw_curves(HISTORY, "dev_acc", best_epoch=1)
    assert list(tmp_path.iterdir()) == []


def test_starting_clears_what_a_killed_run_left_half_written(tmp_path):
    mine = folder(tmp_path)
    mine.path.mkdir(parents=True)
    (mine.path / ".last.safetensors.abc.tmp").write_bytes(b"half")
    save_tree(mine.best, {"task": "tiny"})
    mine.start(resume=False)
    assert sorted(p.name for p in mine.path.glob("[!.]*")) == ["best.safetensors", "config.json"]
    assert not list(mine.path.glob("*.tmp"))


def test_resuming_what_was_never_begun_lists_what_there_is(tmp_path):
    (tmp_path / "tiny-run-12345678").mkdir()
    with pytest.raises(InputError, match=r"--resume: no .*; runs here: tiny-run-12345678"):
        folder(tmp_path).start(resume=True)


def test_curves_show_both_figures(tmp_path, monkeypatch):
    from matplotlib import axes

    drawn, plot, line = [], axes.Axes.plot, axes.Axes.axvline

    def spy(self, x, y, *rest, **how):
        drawn.append((how["label"], list(x), list(y)))
        return plot(self, x, y, *rest, **how)

    def mark(self, x, *, label, **how):
        drawn.append((label, x))
        return line(self, x, label=label, **how)

    monkeypatch.setattr(axes.Axes, "plot", spy)
    monkeypatch.setattr(axes.Axes, "axvline", mark)
    plot_curves(HISTORY, tmp_path / "c.png", "dev_acc", best_epoch=1)
    train, acc = ("training loss", [0, 1], [1.5, 1.0]), ("dev acc", [0, 1], [0.4, 0.6])
    best = ("best epoch, 1: 0.600", 1)
    assert drawn == [train, acc, best]
    drawn.clear()
    judged = [record | {"dev_loss": 2 - record["epoch"]} for record in HISTORY]
    plot_curves(judged, tmp_path / "c.png", "dev_acc", best_epoch=1)
    assert drawn == [train, ("dev loss", [0, 1], [2, 1]), acc, best]
    drawn.clear()
    plot_curves(judged[:1], tmp_path / "c.png", "dev_loss", best_epoch=0)
    assert [label for label, *_ in drawn] == [train[0], "dev loss", "best epoch, 0: 2.000"]


def test_the_commit_is_git_s_and_says_when_the_tree_differs(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *who, *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setattr("engine.provenance.ROOT", tmp_path)
    assert current_commit() == "unknown"
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "Begin")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert current_commit() == head
    (tmp_path / "a").write_text("2")
    assert current_commit() == head + "+changes"


def test_pages_and_measured_results_are_no_changes_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.provenance.ROOT", tmp_path)
    for name in ("README.md", "docs/page.md", "benchmarks/results/core.json", "results/a.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1", encoding="utf-8")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Begin"]):
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)
    for name in ("README.md", "docs/page.md", "benchmarks/results/core.json"):
        (tmp_path / name).write_text("2", encoding="utf-8")
    assert not current_commit().endswith("+changes")
    (tmp_path / "results" / "a.py").write_text("2", encoding="utf-8")
    assert current_commit().endswith("+changes")
