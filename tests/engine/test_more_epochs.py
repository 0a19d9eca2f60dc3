"""A run with constant rates goes on to more epochs, to the bits of one that had them at once."""

import pytest
from tiny_run import Averager, folder, no_picture, run, run_path, same_bits

from engine.errors import InputError
from engine.trees import load_tree, save_tree


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)


def dev(model) -> dict:
    return {"dev": float(model.head.weight.detach().abs().sum())}


def ended(root, **options) -> dict:
    """The last file of a run in this folder of runs, and the weights of its best."""
    run(Averager(dropout=0.2), root, evaluate=dev, **options)
    tree = load_tree(run_path(root, "*/last.safetensors"))
    return tree | {"best weights": load_tree(run_path(root, "*/best.safetensors"))["model"]}


def test_more_epochs_end_in_the_bits_of_a_run_that_had_them_at_once(tmp_path):
    whole = ended(tmp_path / "whole", epochs=4)
    ended(tmp_path / "part", epochs=2)
    longer = ended(tmp_path / "part", epochs=4, resume=True)
    assert same_bits(longer["model"], whole["model"])
    assert same_bits(longer["best weights"], whole["best weights"])
    told = [
        [{**record, "seconds": 0} for record in t["progress"]["history"]] for t in (longer, whole)
    ]
    assert told[0] == told[1] and len(told[0]) == 4


def test_the_folder_of_the_shorter_run_becomes_the_longer_one_s(tmp_path):
    ended(tmp_path, epochs=1)
    ended(tmp_path, epochs=3, resume=True)
    [path] = tmp_path.iterdir()
    assert path == folder(tmp_path, {"epochs": 3, "seed": 0}).path
    assert '"epochs": 3' in (path / "config.json").read_text(encoding="utf-8")
    assert len((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize("rates", [{"schedule": "linear"}, {"warmup": 0.5}])
def test_rates_that_depend_on_the_number_of_epochs_are_refused(rates, tmp_path):
    ended(tmp_path, epochs=1, **rates)
    before = run_path(tmp_path, "*/last.safetensors").read_bytes()
    with pytest.raises(InputError, match="has fewer epochs, and its learning rates depend on"):
        ended(tmp_path, epochs=2, resume=True, **rates)
    assert run_path(tmp_path, "*/last.safetensors").read_bytes() == before
    assert "model" not in load_tree(run_path(tmp_path, "*/last.safetensors"))


def test_a_run_that_stopped_early_stays_finished(tmp_path):
    options = {"patience": 1, "evaluate": lambda model: {"dev": 0.0}}
    run(Averager(), tmp_path, epochs=5, **options)
    progress = run(Averager(), tmp_path, epochs=9, resume=True, **options)
    assert progress.finished and len(progress.history) == 2


def test_a_run_that_another_process_holds_is_left_alone(tmp_path):
    ended(tmp_path, epochs=1)
    with (
        folder(tmp_path, {"epochs": 1, "seed": 0}).locked(),
        pytest.raises(InputError, match="is at work on this run"),
    ):
        ended(tmp_path, epochs=2, resume=True)
    assert ended(tmp_path, epochs=1, resume=True)["progress"]["finished"]


def test_a_finished_run_of_before_whose_state_was_not_kept_is_refused(tmp_path):
    ended(tmp_path, epochs=1)
    last = run_path(tmp_path, "*/last.safetensors")
    tree = load_tree(last)
    save_tree(last, {key: tree[key] for key in tree.keys() - {"model", "optimizer"}})
    assert ended(tmp_path, epochs=1, resume=True)["progress"]["finished"]
    with pytest.raises(InputError, match="found nothing under 'model'"):
        ended(tmp_path, epochs=2, resume=True)
