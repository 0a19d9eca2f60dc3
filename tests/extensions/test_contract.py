"""What every technique that acts inside a run must do, in every task, tested file by file."""

import importlib
import itertools
import json
import os
import re
import signal

import pytest
import torch
from children import at_write, in_child
from course_files import call_main, work_in, write_course, write_model
from slow import one_partner_each, slow_unless
from tiny_run import run_path

from engine.checkpoint import load_tree
from engine.extension import load_extensions, techniques
from engine.files import ROOT
from models.gpt2 import GPT2Model

TASKS = {
    "classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": [],
    "sonnet_generation": ["--max_new_tokens", "4"],
}
# Options and a rate at which a tiny model learns in a few epochs; by default none and 1e-2.
SETTINGS: dict[str, tuple[str, str]] = {
    "lora": ("rank=8,targets=all", "1e-2"),
    "prefix": ("length=10", "0.3"),
    "reft": ("rank=8,first=40", "3e-2"),
    "smart": ("proximal=1", "1e-2"),
}
# What two do not do together, and what is said.
FOR_MATRICES = ("kfac", "muon", "shampoo", "soap")
OPTIMIZERS = ("llrd", *FOR_MATRICES)
CONFLICTS = {
    **{
        frozenset(pair): "2 extensions bring an optimizer: choose one of them"
        for pair in itertools.combinations(OPTIMIZERS, 2)
    },
    **{
        frozenset((name, "prefix")): "no matrix of GPT-2's layers is trained"
        for name in FOR_MATRICES
    },
    frozenset(("flash_attention", "sliding_window")): "other attention",
    frozenset(("ema", "swa")): "two averages of the weights: choose one of them",
    frozenset(("prefix", "sliding_window")): "it goes with no prefix",
}


# Loggers act on nothing: test_loggers.py.
NAMES = [name for name in techniques() if not name.startswith("log_")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model", dropout=0.1)
    return tmp_path


def run(monkeypatch, task: str, name: str, *extra) -> None:
    options, rate = SETTINGS.get(name, ("", "1e-2"))
    words = ["--data_dir", "data", "--model_size", "model", "--lr", rate, *TASKS[task]]
    words += ["--extension", f"{name}:{options}", *extra]
    call_main(monkeypatch, task, *words)


def stored(folder: str = "runs") -> dict[str, torch.Tensor]:
    return load_tree(run_path(folder, "*/best.safetensors"))["model"]


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_it_learns(name, task, place, monkeypatch):
    run(monkeypatch, task, name, "--epochs", "12")
    lines = run_path("runs", "*/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert min(losses[1:]) < 0.98 * losses[0]


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_its_checkpoint_predicts_what_the_run_predicted(name, task, place, monkeypatch):
    run(monkeypatch, task, name, "--epochs", "2")
    outputs = {path: path.read_bytes() for path in (place / "predictions").iterdir()}
    for path in outputs:
        path.unlink()
    best = run_path("runs", "*/best.safetensors")
    words = ["--data_dir", "data", "--checkpoint", best, *TASKS[task]]
    call_main(monkeypatch, task, *words)
    assert {path: path.read_bytes() for path in outputs} == outputs


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_it_resumes_to_the_same_bits(name, task, place, monkeypatch):
    flags = ["--epochs", "2", "--save_minutes", "0"]
    run(monkeypatch, task, name, *flags, "--runs_dir", "whole")
    with monkeypatch.context() as patch:
        at_write(patch, 14, lambda: os.kill(os.getpid(), signal.SIGKILL))
        status = in_child(lambda: run(patch, task, name, *flags, "--runs_dir", "killed"))
    assert os.WIFSIGNALED(status)
    run(monkeypatch, task, name, *flags, "--runs_dir", "killed", "--resume")
    whole, killed = stored("whole"), stored("killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_it_trains_only_what_it_claims(name, task, place, monkeypatch):
    """With a frozen backbone none of GPT-2's own weights is stored, else each of them has moved."""
    run(monkeypatch, task, name, "--epochs", "1")
    [extension] = load_extensions([f"{name}:{SETTINGS.get(name, ('', ''))[0]}"])
    before = GPT2Model.from_pretrained("model").state_dict()
    found = {key.removeprefix("gpt."): tensor for key, tensor in stored().items()}
    shared = before.keys() & found.keys()
    if extension.freezes_backbone:
        assert shared == set()
    else:
        assert shared == before.keys()
        assert sum(not torch.equal(before[key], found[key]) for key in shared) > len(shared) / 2


@pytest.mark.parametrize("name", slow_unless(NAMES[::4].__contains__, NAMES))
def test_a_compiled_run_does_the_same(name, place, monkeypatch):
    """Compiled in earnest, but for the last step, by which it would be made into kernels."""
    flags = ["--epochs", "1", "--limit", "20"]
    run(monkeypatch, "classifier", name, *flags, "--runs_dir", "plain")
    backend = "aot_eager" if name == "gradient_checkpointing" else "eager"  # whose RNG it needs
    real, used = torch.compile, []

    def compile_(model, dynamic, mode):
        used.append(mode)
        return real(model, dynamic=dynamic, backend=backend)

    monkeypatch.setattr("torch.compile", compile_)
    run(monkeypatch, "classifier", name, *flags, "--compile", "--runs_dir", "fast")
    plain, fast = stored("plain"), stored("fast")
    assert used == ["default"] and plain.keys() == fast.keys()
    for key in plain:
        torch.testing.assert_close(fast[key], plain[key], atol=1e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize(  # NAMES is sorted: by default each pair in one order
    "first, second", slow_unless(lambda pair: pair[0] < pair[1], itertools.permutations(NAMES, 2))
)
def test_two_together_train_or_say_why_not(first, second, place, monkeypatch, capsys):
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "1", "--limit", "16"]
    for name in (first, second):
        words += ["--extension", f"{name}:{SETTINGS.get(name, ('', ''))[0]}"]
    conflict = CONFLICTS.get(frozenset((first, second)))
    if conflict is None:
        call_main(monkeypatch, "classifier", *words, *TASKS["classifier"])
        assert stored()["sentiment_head.weight"].isfinite().all()
        return
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "classifier", *words, *TASKS["classifier"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert conflict in error and error.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_its_page_names_paper_and_difference_and_its_row_is_in_the_table(name):
    text = importlib.import_module(f"extensions.{name}").__doc__
    assert re.search(r" (19|20)\d\d, (eq\.|section|algorithm)", text), "paper, year, equation"
    assert "Differs from the paper" in text.replace("\n", " ")
    table = (ROOT / "extensions" / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}.py` |" in table
