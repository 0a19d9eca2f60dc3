"""Files of a run: exact, whole or not at all, and never code."""

import json
import os
import pickle
import subprocess
from argparse import Namespace

import pytest
import torch
from safetensors import safe_open
from tiny_run import Averager, folder, run, run_path, same_bits, weights

from engine import checkpoint
from engine.checkpoint import (
    RunFolder,
    current_commit,
    load_checkpoint,
    load_model,
    load_trainable_state,
    load_tree,
    plot_curves,
    save_tree,
    trainable_state,
)
from engine.errors import InputError
from engine.settings import Settings

HISTORY = [
    {"epoch": 0, "train_loss": 1.5, "dev_acc": 0.4},
    {"epoch": 1, "train_loss": 1.0, "dev_acc": 0.6},
]


# -- trees -------------------------------------------------------------------------------------


def test_a_tree_comes_back_with_its_types_and_bits(tmp_path):
    shared = torch.randn(6, 4)
    tree = {
        "numbers": [1, -2.5, 1e-300, float("inf"), True, None, "ü\n"],
        "by int": {0: {"step": 3}, 1: (1, (2, [3]))},
        "empty": [{}, [], ()],
        "tensors": [shared, shared.T, shared[2:4], shared[:, 1], torch.tensor(7.0)],
        "kinds": {
            dtype: torch.arange(5).to(getattr(torch, dtype))
            for dtype in ("bfloat16", "float16", "float64", "int64", "uint8", "bool")
        },
        "nothing": torch.empty(0, 3),
    }
    save_tree(tmp_path / "t.safetensors", tree)
    found = load_tree(tmp_path / "t.safetensors")

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, dict):
            return type(b) is dict and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            pairs = zip(a, b, strict=True)
            return type(a) is type(b) and all(equal(x, y) for x, y in pairs)
        return type(a) is type(b) and a == b

    assert equal(tree, found)


def test_one_key_is_read_without_the_tensors_of_the_others(tmp_path, monkeypatch):
    path = tmp_path / "tree.safetensors"
    save_tree(path, {"task": "sst", "model": {"weight": torch.ones(3)}})
    assert load_tree(path, only="nothing") == {}
    assert torch.equal(load_tree(path, only="model")["model"]["weight"], torch.ones(3))
    read, unpack = [], checkpoint._unpack
    monkeypatch.setattr(checkpoint, "_unpack", lambda i, file: read.append(i) or unpack(i, file))
    assert load_tree(path, only="task") == {"task": "sst"} and read == ["sst"]


def test_a_view_of_a_large_tensor_is_stored_as_large_as_it_is(tmp_path):
    save_tree(tmp_path / "t.safetensors", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "t.safetensors").stat().st_size < 8000


def test_an_optimizer_s_state_comes_back_bit_for_bit(tmp_path):
    from optimizer import AdamW

    model = Averager()
    optimizer = AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    for _ in range(3):
        model(torch.tensor([[1, 2]]), torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
    save_tree(tmp_path / "o.safetensors", optimizer.state_dict())
    other = AdamW(Averager().parameters())
    other.load_state_dict(load_tree(tmp_path / "o.safetensors"))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine["step"] == theirs["step"] == 3
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
    assert other.param_groups[0]["betas"] == (0.8, 0.99)


def test_a_pickle_is_never_opened(tmp_path):
    """Loading code would run the class; reading a safetensors header cannot."""
    marker = tmp_path / "marker"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    for save in (torch.save, lambda tree, path: path.write_bytes(pickle.dumps(tree))):
        save({"model": Hostile()}, tmp_path / "best.safetensors")
        with pytest.raises(InputError, match=r"best\.safetensors: no whole checkpoint"):
            load_tree(tmp_path / "best.safetensors")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "best.safetensors"
    save_tree(path, {"task": "tiny", "model": weights(Averager())})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"no whole checkpoint of this project.*train again"):
        load_tree(path)


def test_writing_fails_whole_when_the_disk_is_full(tmp_path, monkeypatch):
    """The old file stays, the temporary one goes."""
    path = tmp_path / "last.safetensors"
    save_tree(path, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_tree(path, {"step": 2})
    assert load_tree(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


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


def test_the_best_file_rebuilds_the_model_from_its_own_settings(tmp_path):
    """Without the weights that GPT-2 came from, since the file has them all."""
    asked = []

    def build_model(settings, pretrained):
        asked.append((settings, pretrained))
        return nn_with_backbone()

    model = nn_with_backbone()
    RunFolder(tmp_path, "tiny", "x", Settings({"lr": 0.5})).save_best(model, {"epoch": 3})
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
    RunFolder(tmp_path, "tiny", "x", Settings({})).save_best(model, {})
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
    assert sorted(p.name for p in path.iterdir()) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "last.safetensors",
        "metrics.jsonl",
    ]
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert config["task"] == "tiny" and config["epochs"] == 2
    assert config["commit"] == current_commit()
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(path / "best.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"tree"}


def test_a_worker_that_is_not_the_main_one_writes_nothing(tmp_path):
    other = RunFolder(tmp_path, "tiny", "x", Settings({}), writes=False)
    other.start(resume=False)
    other.save_best(Averager(), {})
    other.save_last({"step": 1})
    other.write_metrics(HISTORY)
    other.draw_curves(HISTORY, "dev_acc")
    assert list(tmp_path.iterdir()) == []


def test_starting_clears_what_a_killed_run_left_half_written(tmp_path):
    mine = folder(tmp_path)
    mine.path.mkdir(parents=True)
    (mine.path / ".last.safetensors.abc.tmp").write_bytes(b"half")
    save_tree(mine.best, {"task": "tiny"})
    mine.start(resume=False)
    assert sorted(p.name for p in mine.path.iterdir()) == ["best.safetensors", "config.json"]


def test_resuming_what_was_never_begun_lists_what_there_is(tmp_path):
    (tmp_path / "tiny-run-12345678").mkdir()
    with pytest.raises(InputError, match=r"--resume: no .*; runs here: tiny-run-12345678"):
        folder(tmp_path).start(resume=True)


def test_curves_show_both_figures(tmp_path, monkeypatch):
    from matplotlib import axes

    drawn, plot = [], axes.Axes.plot

    def spy(self, x, y, *rest, **how):
        drawn.append((list(x), list(y)))
        return plot(self, x, y, *rest, **how)

    monkeypatch.setattr(axes.Axes, "plot", spy)
    plot_curves(HISTORY, tmp_path / "c.png", "dev_acc")
    assert drawn == [([0, 1], [1.5, 1.0]), ([0, 1], [0.4, 0.6])]


def test_the_commit_is_git_s_and_says_when_the_tree_differs(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *who, *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setattr("engine.checkpoint.ROOT", tmp_path)
    assert current_commit() == "unknown"
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "Begin")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert current_commit() == head
    (tmp_path / "a").write_text("2")
    assert current_commit() == head + "+changes"
