"""What a run depends on beside its flags may not change behind its back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from course_files import call_main, work_in, write_course, write_model
from safetensors.torch import load_file, save_file
from tiny_run import run_path

from engine.extension import techniques
from engine.hub import load_tokenizer
from engine.inputs import frozen_weights, tokenizer_digest
from engine.trees import load_tree, save_tree

TRAIN, DEV = Path("data/ids-sst-train.csv"), Path("data/ids-sst-dev.csv")
SST = ["--dataset", "sst", "--data_dir", "data", "--model_size", "model", "--epochs", "1"]
RUNS = {  # of tasks whose backbone is frozen, by the part that is trained
    "head": ["classifier", *SST],
}
WHOLE = ["classifier", *SST, "--fine-tune-mode", "full-model"]
EXTENSION = ["--extension", "lora:rank=2"]
if "lora" in techniques():  # it is not there where the core is alone
    RUNS["lora"] = [*WHOLE, *EXTENSION]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with data, a model, and a finished run of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    write_course(folder / "data", rows=20)
    write_model(folder / "model")
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        for name, words in {**RUNS, "whole": WHOLE}.items():
            call_main(monkeypatch, *words, "--runs_dir", name)
    return folder


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    work_in(monkeypatch, tmp_path)
    return tmp_path


def other_weights() -> None:
    """Another seed's, of the same shape, for the same tokenizer."""
    write_model("other", seed=5)
    shutil.copy("other/model.safetensors", "model/model.safetensors")


def one_other_weight() -> None:
    path = Path("model/model.safetensors")
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] += 1e-6
    save_file(tensors, path, metadata={"format": "pt"})


def other_merges() -> None:
    """The same tokens, put together in another order."""
    path = Path("model/tokenizer.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["merges"].reverse()
    path.write_text(json.dumps(document), encoding="utf-8")


def other_labels(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = lines[1][:-1] + ("1" if lines[1][-1] == "0" else "0")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def use(name: str, how: str) -> list[str]:
    """The command line that goes on with a run, or predicts by it."""
    words = [*{**RUNS, "whole": WHOLE}[name], "--runs_dir", name]
    if how == "--resume":
        return [*words, "--resume"]
    words = [word for word in words if word not in EXTENSION]  # the checkpoint knows it
    return [*words, "--checkpoint", str(run_path(name, "*/best.safetensors"))]


@pytest.mark.parametrize("how", ["--checkpoint", "--resume"])
@pytest.mark.parametrize("change", [other_weights, one_other_weight])
@pytest.mark.parametrize("name", RUNS)
def test_other_weights_under_a_frozen_backbone_are_refused(
    name, change, how, place, monkeypatch, refused
):
    change()
    with refused("have changed since it was written: frozen weights: put"):
        call_main(monkeypatch, *use(name, how))


def test_a_checkpoint_that_holds_all_weights_needs_no_others(place, monkeypatch):
    other_weights()
    call_main(monkeypatch, *use("whole", "--checkpoint"))


@pytest.mark.parametrize("how", ["--checkpoint", "--resume"])
@pytest.mark.parametrize("name", ["head", "whole"])
def test_another_tokenizer_is_refused(name, how, place, monkeypatch, refused):
    other_merges()
    with refused("since it was written: tokenizer: put"):
        call_main(monkeypatch, *use(name, how))


@pytest.mark.parametrize("path, rows", [(DEV, "dev rows"), (TRAIN, "train rows")])
def test_labels_that_changed_before_a_run_goes_on_are_refused(
    path, rows, place, monkeypatch, refused
):
    """The best epoch was chosen by the old ones."""
    other_labels(path)
    with refused(f"have changed since it was written: {rows}: put"):
        call_main(monkeypatch, *use("whole", "--resume"))


def test_other_rows_may_be_predicted(place, monkeypatch):
    other_labels(DEV)
    call_main(monkeypatch, *use("head", "--checkpoint"))


@pytest.mark.parametrize("how", ["--checkpoint", "--resume"])
def test_unchanged_a_run_goes_on_and_predicts(how, place, monkeypatch):
    for name in RUNS:
        call_main(monkeypatch, *use(name, how))


@pytest.mark.parametrize("how", ["--checkpoint", "--resume"])
def test_files_from_before_inputs_were_kept_are_taken(how, place, monkeypatch):
    for path in Path("head").glob("*/*.safetensors"):
        tree = load_tree(path)
        rows = tree.pop("inputs")["train rows"]
        save_tree(path, tree | ({"best": None, "data": rows} if "best" in tree else {}))
    call_main(monkeypatch, *use("head", how))


def test_weights_that_are_all_nan_are_refused(place, monkeypatch, refused):
    """They would predict class 0 for every row."""
    path = run_path("whole", "*/best.safetensors")
    tree = load_tree(path)
    tree["model"] = {n: torch.full_like(t, torch.nan) for n, t in tree["model"].items()}
    save_tree(path, tree)
    with refused("hold NaN or infinity"):
        call_main(monkeypatch, *use("whole", "--checkpoint"))


def test_the_digest_of_a_tokenizer_is_that_of_its_copy_and_of_no_other(place):
    one = load_tokenizer("model")
    one.save_pretrained("copy")
    shutil.copy("model/config.json", "copy/config.json")
    assert tokenizer_digest(load_tokenizer("copy")) == tokenizer_digest(one)
    other_merges()
    assert tokenizer_digest(load_tokenizer("model")) != tokenizer_digest(one)


def test_the_digest_of_frozen_weights_leaves_trained_ones_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert frozen_weights(model) == {}
    model[0].requires_grad_(False)
    before = frozen_weights(model)
    model[1].weight.data += 1
    assert frozen_weights(model) == before
    model[0].weight.data += 1
    assert frozen_weights(model) != before
