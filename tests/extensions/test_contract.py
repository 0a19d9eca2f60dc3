"""What every technique that acts inside a run must do, in every task, tested file by file."""

import contextlib
import importlib
import itertools
import json
import os
import re
import signal
from dataclasses import fields

import pytest
import torch
from children import at_write, in_child, in_workers
from course_files import call_main, work_in, write_adapter, write_course, write_model
from matrix_runs import model_with_head
from slow import one_partner_each, slow_unless
from technique_cases import NAMES, cases, those_whose
from tiny_run import run_path

from engine.checkpoint import load_tree
from engine.extension import Extension, load_extensions
from engine.files import ROOT
from models.gpt2 import GPT2Model

TASKS = {
    "classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": [],
    "sonnet_generation": ["--max_new_tokens", "4"],
}
CASES = cases()
VARIED = [(name, options) for name, tried in CASES.items() for options in tried.varied]
# What two do not do together, and what is said.
FOR_MATRICES = ("kfac", "muon", "shampoo", "soap")
OPTIMIZERS = those_whose(lambda e: e.make_optimizer(model_with_head(), 0.1, 0.0) is not None)
CONFLICTS = {
    **{
        frozenset(pair): " bring an optimizer each: choose one of them"
        for pair in itertools.combinations(OPTIMIZERS, 2)
    },
    **{
        frozenset((name, "prefix")): "no matrix of GPT-2's layers is trained"
        for name in FOR_MATRICES
    },
    frozenset(("flash_attention", "sliding_window")): "other attention",
    frozenset(("flash_attention", "sophia")): "a part of this model has no second derivative",
    **{
        frozenset((name, "schedule_free")): "it averages the weights itself: leave out ema and swa"
        for name in ("ema", "swa")
    },
    frozenset(("ema", "swa")): "two averages of the weights: choose one of them",
    frozenset(("prefix", "sliding_window")): "it goes with no prefix",
}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """data/, a tiny model/ and an adapter/ of it, which no run changes."""
    root = tmp_path_factory.mktemp("course")
    write_course(root / "data")
    write_model(root / "model", dropout=0.1)
    write_adapter(root / "adapter")
    return root


@pytest.fixture
def place(course, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    for path in course.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(monkeypatch, task: str, flags: list[str], *extra) -> None:
    """Run a task with techniques, given as the values of --extension."""
    words = ["--data_dir", "data", "--model_size", "model", *TASKS[task]]
    words += [word for flag in flags for word in ("--extension", flag)]
    call_main(monkeypatch, task, *words, *extra)


def run_tried(monkeypatch, task: str, name: str, *extra) -> None:
    """Run a task with the options and the rate at which the technique learns."""
    run(monkeypatch, task, [flag_of(name)], "--lr", CASES[name].lr, *extra)


def flag_of(name: str) -> str:
    return f"{name}:{CASES[name].options}"


def predictions(place) -> dict:
    return {path: path.read_bytes() for path in (place / "predictions").iterdir()}


def stored(folder: str = "runs") -> dict[str, torch.Tensor]:
    return load_tree(run_path(folder, "*/best.safetensors"))["model"]


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_it_learns(name, task, place, monkeypatch):
    run_tried(monkeypatch, task, name, "--epochs", "12")
    lines = run_path("runs", "*/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert min(losses[1:]) < 0.98 * losses[0]


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_its_checkpoint_predicts_what_the_run_predicted(name, task, place, monkeypatch):
    run_tried(monkeypatch, task, name, "--epochs", "2")
    predicts_again(task, place, monkeypatch)


def predicts_again(task: str, place, monkeypatch) -> None:
    """The run's best checkpoint gives the bytes of the run's own predictions."""
    outputs = predictions(place)
    for path in outputs:
        path.unlink()
    best = run_path("runs", "*/best.safetensors")
    call_main(monkeypatch, task, "--data_dir", "data", "--checkpoint", best, *TASKS[task])
    assert outputs and predictions(place) == outputs


@pytest.mark.parametrize(
    "name, options, task",
    [
        pytest.param(*case, task, marks=() if i % 3 == j else pytest.mark.slow)
        for i, case in enumerate(VARIED)
        for j, task in enumerate(TASKS)
    ],
)
def test_with_other_options_it_trains_and_its_checkpoint_predicts_the_same(
    name, options, task, place, monkeypatch, refused
):
    flags, said = [f"{name}:{options}"], CASES[name].refused.get((options, task))
    with refused(said) if said else contextlib.nullcontext():
        run(monkeypatch, task, flags, "--epochs", "1", "--lr", CASES[name].lr)
    if said:
        return
    weights = [tensor for tensor in stored().values() if tensor.is_floating_point()]
    assert all(bool(tensor.isfinite().all()) for tensor in weights)
    predicts_again(task, place, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_options_change_every_option(name):
    """What is not declared in a test module, as TRIED, is tried by nothing here."""
    [plain] = load_extensions([name])
    others = load_extensions(f"{name}:{options}" for options in CASES[name].varied)
    options = [option.name for option in fields(plain)]
    same = [o for o in options if all(getattr(one, o) == getattr(plain, o) for one in others)]
    assert same == [], "vary them: TRIED in a module of tests/extensions/ (technique_cases.py)"


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_it_resumes_to_the_same_bits(name, task, place, monkeypatch):
    flags = ["--epochs", "2", "--save_minutes", "0"]
    run_tried(monkeypatch, task, name, *flags, "--runs_dir", "whole")
    with monkeypatch.context() as patch:
        at_write(patch, 14, lambda: os.kill(os.getpid(), signal.SIGKILL))
        status = in_child(lambda: run_tried(patch, task, name, *flags, "--runs_dir", "killed"))
    assert os.WIFSIGNALED(status)
    run_tried(monkeypatch, task, name, *flags, "--runs_dir", "killed", "--resume")
    whole, killed = stored("whole"), stored("killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.parametrize("name, task", one_partner_each(NAMES, TASKS))
def test_it_trains_only_what_it_claims(name, task, place, monkeypatch):
    """With a frozen backbone none of GPT-2's own weights is stored, else each of them has moved."""
    run_tried(monkeypatch, task, name, "--epochs", "1")
    [extension] = load_extensions([flag_of(name)])
    before = GPT2Model.from_pretrained("model").state_dict()
    found = {key.removeprefix("gpt."): tensor for key, tensor in stored().items()}
    shared = before.keys() & found.keys()
    if extension.freezes_backbone:
        assert shared == set()
    else:
        assert shared == before.keys()
        assert sum(not torch.equal(before[key], found[key]) for key in shared) > len(shared) / 2


def hooks(name: str) -> set[str]:
    """The hooks of the seam that a technique overrides."""
    [extension] = load_extensions([name])
    public = {hook: value for hook, value in vars(Extension).items() if not hook.startswith("_")}
    return {hook for hook, value in public.items() if getattr(type(extension), hook) is not value}


HOOKS = {name: hooks(name) for name in NAMES}
# Those that act on what is compiled: other ones find its gradients, whoever made them.
IN_THE_PASS = {"prepare_model", "penalty", "before_backward", "differentiated"}
COMPILED = [name for name in NAMES if HOOKS[name] & IN_THE_PASS]


@pytest.mark.parametrize("name", slow_unless(COMPILED[::4].__contains__, COMPILED))
def test_a_compiled_run_does_the_same(name, place, monkeypatch):
    """Compiled in earnest, but for the last step, by which it would be made into kernels."""
    flags = ["--epochs", "1", "--limit", "20"]
    run_tried(monkeypatch, "classifier", name, *flags, "--runs_dir", "plain")
    backend = "aot_eager" if name == "gradient_checkpointing" else "eager"  # whose RNG it needs
    real, used = torch.compile, []

    def compile_(model, dynamic, mode):
        used.append(mode)
        return real(model, dynamic=dynamic, backend=backend)

    monkeypatch.setattr("torch.compile", compile_)
    run_tried(monkeypatch, "classifier", name, *flags, "--compile", "--runs_dir", "fast")
    plain, fast = stored("plain"), stored("fast")
    assert used == ["default"] and plain.keys() == fast.keys()
    for key in plain:
        torch.testing.assert_close(fast[key], plain[key], atol=1e-4, rtol=1e-3, msg=key)


def is_shardable(flag: str) -> bool:
    return load_extensions([flag])[0].shardable


FLAGS = [f"{name}:{options}" for name, t in CASES.items() for options in (t.options, *t.varied)]


@pytest.mark.parametrize("flag", slow_unless("rdrop:".__eq__, filter(is_shardable, FLAGS)))
def test_with_sharded_weights_it_trains_what_copies_train(flag, place, monkeypatch):
    flags = ["--epochs", "1", "--limit", "20", "--batch_size", "4", "--clip", "0.5"]
    for folder, how in (("copies", []), ("shares", ["--shard"])):
        words = [*flags, "--runs_dir", folder, *how]
        in_workers(lambda words=words: run(monkeypatch, "classifier", [flag], *words))
    copies, shares = stored("copies"), stored("shares")
    assert copies.keys() == shares.keys()
    for key in copies:
        torch.testing.assert_close(shares[key], copies[key], atol=1e-6, rtol=0, msg=key)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if not is_shardable(flag)])
def test_what_needs_whole_weights_is_refused(flag, place, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    name, _, _ = flag.partition(":")
    with refused(f"--shard: {name}: needs whole weights"):
        run(monkeypatch, "classifier", [flag], "--shard")


PAIRS = list(itertools.combinations(NAMES, 2))
REFUSED = [(second, first) for first, second in PAIRS if frozenset((first, second)) in CONFLICTS]


def is_risky(pair: tuple[str, str]) -> bool:
    """Two that act in the same place, or are refused, in one order: NAMES is sorted."""
    first, second = pair
    same_place = bool(HOOKS[first] & HOOKS[second])
    return first < second and (same_place or frozenset(pair) in CONFLICTS)


@pytest.mark.parametrize("first, second", slow_unless(is_risky, PAIRS + REFUSED))
def test_two_techniques_train_together_or_are_refused_with_the_reason(
    first, second, place, monkeypatch, refused
):
    conflict = CONFLICTS.get(frozenset((first, second)))
    with refused(conflict) if conflict else contextlib.nullcontext():
        flags = [flag_of(first), flag_of(second)]
        run(monkeypatch, "classifier", flags, "--epochs", "1", "--limit", "16")
    assert conflict or stored()["sentiment_head.weight"].isfinite().all()


def in_turn(first: str, second: str) -> list[str]:
    """Of each of the two the next further options, as the flags of this pair, in reverse order."""
    turn = NAMES.index(second) - NAMES.index(first)
    tried = [(name, CASES[name].varied) for name in (second, first)]
    return [f"{name}:{varied[turn % len(varied)]}" for name, varied in tried]


def test_all_further_options_have_their_turn():
    flags = {flag for pair in PAIRS for flag in in_turn(*pair)}
    assert flags == {f"{name}:{options}" for name, options in VARIED}


@pytest.mark.slow
@pytest.mark.parametrize("first, second", PAIRS)
def test_two_with_other_options_train_or_are_refused_in_one_line(
    first, second, place, monkeypatch, capsys
):
    try:
        run(monkeypatch, "classifier", in_turn(first, second), "--epochs", "1", "--limit", "8")
    except SystemExit as stop:
        error = capsys.readouterr().err
        assert stop.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    else:
        assert list(place.glob("runs/*/best.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_its_page_names_paper_and_difference_and_its_row_is_in_the_table(name):
    text = importlib.import_module(f"extensions.{name}").__doc__
    assert re.search(r" (19|20)\d\d, (eq\.|section|algorithm)", text), "paper, year, equation"
    assert "Differs from the paper" in text.replace("\n", " ")
    table = (ROOT / "extensions" / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}.py` |" in table
