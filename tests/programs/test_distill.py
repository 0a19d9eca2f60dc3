"""Distillation: its loss at both ends and for large T, teachers of each task, whole runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from course_files import WORKER, call_main, work_in, write_course, write_model
from recorder import CallAgain
from task_checkpoints import KINDS, build, save
from tiny_run import interrupt_after_save, run_path
from torch.nn import functional as F

from engine.batches import IGNORED_LABEL, TokenDataset, make_loader
from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.hub import load_tokenizer
from engine.recorder import RECORDERS
from programs.distill import distill
from programs.distill.distill import Distilled
from programs.distill.losses import imitation_loss, soft_targets
from programs.distill.teachers import ClassTeachers, TokenTeachers
from programs.tasks import TASKS

# -- the loss --------------------------------------------------------------------------------------


def logits_of(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=random, dtype=torch.float64).float()


def gradient(student, targets, temperature: float):
    student = student.clone().requires_grad_()
    imitation_loss(student, targets, temperature).sum().backward()
    return student.grad


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_the_loss_is_the_formula_row_by_row(temperature):
    student, teacher = logits_of(4, 5), logits_of(1, 4, 5, seed=1)
    p, q = ((x.double() / temperature).softmax(dim=-1) for x in (teacher[0], student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=-1)
    found = imitation_loss(student, soft_targets(teacher, temperature, "log"), temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_cross_entropy_with_the_teachers_distribution():
    """Hinton et al. 2015, eq. 2, times T²."""
    student, teacher, t = logits_of(4, 5), logits_of(1, 4, 5, seed=1), 3.0
    found = gradient(student, soft_targets(teacher, t, "log"), t)
    expected = t * ((student / t).softmax(dim=-1) - (teacher[0] / t).softmax(dim=-1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_at_a_high_temperature_the_gradient_is_the_difference_of_logits_by_their_number():
    """Hinton et al. 2015, eq. 4: for logits of mean 0."""
    student, teacher = (
        x - x.mean(dim=-1, keepdim=True) for x in (logits_of(4, 5), logits_of(4, 5))
    )
    teacher = teacher.flip(dims=[0])
    expected = (student - teacher) / 5
    errors = [
        float((gradient(student, soft_targets(teacher[None], t, "log"), t) - expected).abs().max())
        for t in (3.0, 30.0, 300.0)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 0.02


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_is_its_teacher_learns_nothing(temperature):
    student = logits_of(6, 5)
    targets = soft_targets(student[None], temperature, "log")
    assert float(imitation_loss(student, targets, temperature).abs().max()) < 1e-5
    assert float(gradient(student, targets, temperature).abs().max()) < 1e-6
    assert (
        float(gradient(student + logits_of(6, 5, seed=2), targets, temperature).abs().max()) > 0.1
    )


@pytest.mark.parametrize("pool", ["log", "linear"])
def test_equal_teachers_are_one(pool):
    one = logits_of(1, 6, 5)
    for copies in (one.expand(2, -1, -1), one.expand(5, -1, -1)):
        torch.testing.assert_close(soft_targets(copies, 2.0, pool), soft_targets(one, 2.0, pool))


def test_the_pools_are_the_means_of_softened_distributions():
    said = logits_of(3, 4, 5)
    softened = (said / 2).softmax(dim=-1)
    linear, log = (soft_targets(said, 2.0, pool) for pool in ("linear", "log"))
    torch.testing.assert_close(linear.exp(), softened.mean(dim=0))
    torch.testing.assert_close(log, (said.mean(dim=0) / 2).log_softmax(dim=-1))


# -- a task with teachers --------------------------------------------------------------------------


class Given:
    """A teacher that says what it is told to."""

    def __init__(self, said):
        self.said = said

    def logits(self, batch: dict):
        return self.said


def distilled(task: str, said, **how) -> Distilled:
    return Distilled(
        TASKS[task], Given(said), **{"temperature": 2.0, "alpha": 0.9, "pool": "log"} | how
    )


def test_alpha_weighs_imitation_against_the_labels():
    student, said, labels = logits_of(6, 5), logits_of(1, 6, 5, seed=1), torch.arange(6) % 5
    losses = [
        distilled("sst", said, alpha=a).loss_fn(student, {"labels": labels}) for a in (0, 0.3, 1)
    ]
    plain = F.cross_entropy(student, labels, reduction="sum")
    imitation = imitation_loss(student, soft_targets(said, 2.0, "log"), 2.0).sum()
    assert torch.equal(losses[0], plain) and torch.equal(losses[2], imitation)
    torch.testing.assert_close(losses[1], 0.3 * imitation + 0.7 * plain)


def test_padding_and_the_end_of_a_text_teach_nothing():
    student, said = logits_of(2, 4, 7).requires_grad_(), logits_of(1, 8, 7, seed=1)
    labels = torch.tensor(
        [[3, 1, 2, IGNORED_LABEL], [5, IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL]]
    )
    loss = distilled("sonnet", said, alpha=1.0).loss_fn(student, {"labels": labels})
    loss.backward()
    taught = student.grad.abs().sum(dim=-1) > 0
    assert torch.equal(taught, labels != IGNORED_LABEL)
    rows = imitation_loss(student.flatten(0, 1), soft_targets(said, 2.0, "log"), 2.0)
    torch.testing.assert_close(loss, rows[[0, 1, 2, 4]].sum())


# -- teachers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, models of two tokenizers, and teachers of each task with random weights."""
    folder = tmp_path_factory.mktemp("place")
    write_course(folder / "data", rows=24)
    write_model(folder / "model", positions=96)
    write_model(folder / "small", hidden_size=16, vocab_size=350, seed=1, positions=96)
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        for kind in KINDS:
            save(f"{kind}.safetensors", kind, *build(kind, "model"))
        save("other.safetensors", "sst", *build("sst", "small"))
        save("lora.safetensors", "sst", *build("sst", "model", ["lora:rank=2"]))
        model, settings = build("sst", "model")
        model.sentiment_head = torch.nn.Linear(32, 3)
        save("three.safetensors", "sst", model, settings.replace(num_labels=3))
        save("small-sonnet.safetensors", "sonnet", *build("sonnet", "small"))
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A folder for a test's own runs, with links to the place's files."""
    work_in(monkeypatch, tmp_path)
    for path in place.iterdir():
        Path(path.name).symlink_to(path)
    return tmp_path


STUDENTS = {
    "sst": ["classifier.py", "--dataset", "sst", "--fine-tune-mode", "full-model"],
    "head": ["classifier.py", "--dataset", "cfimdb"],
    "paraphrase": ["paraphrase_detection.py"],
    "sonnet": ["sonnet_generation.py", "--max_new_tokens", "2"],
}
COMMON = ["--model_size", "model", "--epochs", "2", "--lr", "1e-2", "--quiet"]


def settings_of(kind: str, *words):
    return KINDS[kind][0].get_args([*STUDENTS[kind][1:], *COMMON, *words])


def test_teachers_of_any_size_and_tokenizer_say_of_each_row_what_they_would_say_alone(here):
    paths = ["sst.safetensors", "other.safetensors", "lora.safetensors"]
    task, settings = TASKS["sst"], settings_of("sst", "--limit", "7")
    tokenizer = load_tokenizer("model")
    loaders = task.build_loaders(settings, tokenizer, 96, WORKER, ["train"])
    loader = ClassTeachers(task, paths, settings, WORKER).beside(loaders["train"])
    rows = {
        row.sent_id: row for row in task.read("data/ids-sst-train.csv", labelled=True, say=None)
    }
    seen = 0
    for batch in loader:
        assert batch["teachers"].shape == (len(batch["sent_ids"]), 3, 5)
        for sent_id, said in zip(batch["sent_ids"], batch["teachers"], strict=True):
            for path, log_probs in zip(paths, said, strict=True):
                model, trained_with = task.load(path)
                ids = load_tokenizer(trained_with.model_size)(
                    rows[sent_id].text, return_tensors="pt"
                )
                with torch.no_grad():
                    logits = model.eval()(ids["input_ids"], ids["attention_mask"])[0]
                torch.testing.assert_close(
                    log_probs, logits.log_softmax(dim=-1), atol=1e-5, rtol=1e-4
                )
            seen += 1
    assert seen == 7


def test_a_teacher_of_tokens_says_of_each_batch_what_it_would_say_alone(here):
    found = TokenTeachers(TASKS["sonnet"], ["sonnet.safetensors"], settings_of("sonnet"), WORKER)
    data = TokenDataset(
        [[5, 6, 7], [8, 9]], ["a", "b"], [[6, 7, IGNORED_LABEL], [9, IGNORED_LABEL]]
    )
    [batch] = make_loader(data, 2)
    [said] = found.logits(batch)
    model, _ = TASKS["sonnet"].load("sonnet.safetensors")
    for row, ids in enumerate(batch["token_ids"]):
        real = int(batch["attention_mask"][row].sum())
        with torch.no_grad():
            alone = model.eval()(ids[None, :real], torch.ones(1, real, dtype=torch.long))[0]
        width = batch["token_ids"].shape[1]
        torch.testing.assert_close(said[row * width :][:real], alone, atol=1e-5, rtol=1e-4)
    assert not said.requires_grad and not any(m.training for m in found.models)


# -- runs ------------------------------------------------------------------------------------------


def distil(monkeypatch, kind: str, *words, teacher=None, own=()) -> None:
    flags = [w for path in teacher or [f"{kind}.safetensors"] for w in ("--teacher", path)]
    student = [*STUDENTS[kind], *COMMON, *words]
    monkeypatch.setattr(sys, "argv", ["distill", *flags, *own, "--", *map(str, student)])
    distill.main()


def outcome(root) -> tuple[dict, list[dict]]:
    """The weights of a run's best epoch, and its figures without the clock's."""
    lines = run_path(root, "*/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    figures = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    return load_tree(run_path(root, "*/best.safetensors"))["model"], figures


def same(one, other) -> bool:
    (weights, figures), (weights2, figures2) = one, other
    equal = all(torch.equal(weights[name], weights2[name]) for name in weights)
    return weights.keys() == weights2.keys() and equal and figures == figures2


@pytest.mark.parametrize(
    "kind", ["sst", *(pytest.param(k, marks=pytest.mark.slow) for k in STUDENTS if k != "sst")]
)
def test_without_imitation_it_is_the_task_s_own_run_bit_for_bit(kind, here, monkeypatch):
    program, *words = STUDENTS[kind]
    call_main(monkeypatch, program.removesuffix(".py"), *words, *COMMON, "--runs_dir", "plain")
    predictions = {path.name: path.read_bytes() for path in Path("predictions").iterdir()}
    distil(monkeypatch, kind, "--runs_dir", "zero", own=["--alpha", "0"])
    assert same(outcome("plain"), outcome("zero"))
    again = {path.name: path.read_bytes() for path in Path("predictions").iterdir()}
    assert {n: b for n, b in again.items() if n.endswith((".csv", ".txt"))} == {
        n: b for n, b in predictions.items() if n.endswith((".csv", ".txt"))
    }
    distil(monkeypatch, kind, "--runs_dir", "some", own=["--alpha", "0.5"])
    assert not same(outcome("plain"), outcome("some"))


@pytest.mark.slow
def test_a_student_comes_to_say_what_its_teacher_says(here, monkeypatch):
    words = ["--epochs", "8", "--hidden_dropout_prob", "0", "--runs_dir", "runs"]
    distil(monkeypatch, "sst", *words, own=["--alpha", "1"])
    losses = [record["train_loss"] for record in outcome("runs")[1]]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_equal_teachers_and_any_order_give_the_same_run(here, monkeypatch):
    Path("again.safetensors").write_bytes(Path("sst.safetensors").read_bytes())
    files = [["sst.safetensors"], ["again.safetensors", "sst.safetensors"]]
    for root, teacher in zip(("one", "two"), files, strict=True):
        distil(monkeypatch, "sst", "--runs_dir", root, teacher=teacher)
    (weights, _), (weights2, _) = outcome("one"), outcome("two")
    for name in weights:
        torch.testing.assert_close(weights[name], weights2[name], atol=1e-3, rtol=1e-3)
    files = ["sst.safetensors", "other.safetensors"]
    for root, teacher in (("here", files), ("there", files[::-1])):
        distil(monkeypatch, "sst", "--runs_dir", root, teacher=teacher)
    assert same(outcome("here"), outcome("there"))
    assert not same(outcome("here"), outcome("one"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sst", "sonnet"])
def test_an_interrupted_run_goes_on_to_the_same_bits(kind, here, monkeypatch, capsys):
    distil(monkeypatch, kind, "--runs_dir", "whole")
    with monkeypatch.context() as patch:
        interrupt_after_save(patch, epoch=1, step=0)
        with pytest.raises(SystemExit) as stop:
            distil(patch, kind, "--runs_dir", "parts", "--save_minutes", "0")
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    distil(monkeypatch, kind, "--runs_dir", "parts", "--resume")
    assert same(outcome("whole"), outcome("parts"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sst", "sonnet"])
def test_recorded_steps_give_the_eager_run_s_weights(kind, here, monkeypatch):
    made = []
    words = ["--epochs", "3", "--batch_size", "4"]
    distil(monkeypatch, kind, *words, "--runs_dir", "eager")
    monkeypatch.setitem(RECORDERS, "cpu", lambda device: made.append(CallAgain()) or made[-1])
    distil(monkeypatch, kind, *words, "--runs_dir", "recorded")
    assert made[0].replayed > 0
    (weights, _), (weights2, _) = outcome("eager"), outcome("recorded")
    for name in weights:
        torch.testing.assert_close(weights[name], weights2[name], atol=2e-3, rtol=1e-3, msg=name)


def test_the_result_is_the_task_s_own_and_says_who_taught_it(here, monkeypatch, capsys):
    distil(
        monkeypatch,
        "sst",
        "--model_size",
        "small",
        "--runs_dir",
        "runs",
        own=["--temperature", "3"],
    )
    best = run_path("runs", "sst-distilled-full-model-small-*/best.safetensors")
    stored = load_tree(best, only="settings")["settings"]["distillation"]
    assert (stored["temperature"], stored["alpha"], stored["pool"]) == (3.0, 0.9, "log")
    assert list(stored["teachers"]) == ["sst.safetensors"] and all(stored["teachers"].values())
    before = Path("predictions/finetune-sst-dev-out.csv").read_bytes()
    call_main(monkeypatch, "classifier", "--dataset", "sst", "--checkpoint", best)
    assert Path("predictions/finetune-sst-dev-out.csv").read_bytes() == before


# -- what is refused -------------------------------------------------------------------------------

SST = STUDENTS["sst"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", *SST], "--teacher"),
        (["--teacher", "sst.safetensors"], "expected at the end: -- PROGRAM.py"),
        (["--teacher", "sst.safetensors", "--", "demo.py"], "expected at the end: -- PROGRAM.py"),
        (["--teacher", "none", "--", *SST], "none: no such checkpoint"),
        (["--teacher", "head.safetensors", "--", *SST], "a checkpoint of task 'cfimdb', expected"),
        (["--teacher", "paraphrase.safetensors", "--", *SST], "a checkpoint of task 'paraphrase'"),
        (["--teacher", "three.safetensors", "--", *SST], "a model of 3 classes, expected the 5"),
        (["--teacher", "a", "--teacher", "a", "--", *SST], "a: stands twice"),
        (["--teacher", "a", "--temperature", "0", "--", *SST], "--temperature 0.0: expected a"),
        (["--teacher", "a", "--alpha", "1.1", "--", *SST], "--alpha 1.1: expected from 0 to 1"),
        (["--teacher", "a", "--", "classifier.py"], "add --dataset sst or cfimdb"),
        (["--teacher", "a", "--", *SST, "--checkpoint", "b"], "--checkpoint: a student is"),
        (["--teacher", "a", "--", *SST, "--text", "b"], "--text: a student is trained"),
        (["--teacher", "a", "--", *SST, "--epochs", "0"], "--epochs 0: expected at least 1"),
        (
            ["--teacher", "small-sonnet.safetensors", "--", *STUDENTS["sonnet"]],
            "its tokenizer, of small, is not that of model",
        ),
    ],
)
def test_calls_that_make_no_sense_are_refused(words, said, here, monkeypatch, refused):
    common = COMMON[:2] if "--" in words and words[-1] != "demo.py" else []
    monkeypatch.setattr(sys, "argv", ["distill", *words, *common])
    with refused(said):
        distill.main()
    assert not Path("runs").exists() or not list(Path("runs").glob("*distilled*"))


def test_a_teacher_that_cannot_read_a_training_text_whole_is_refused(here):
    found = TokenTeachers(TASKS["sonnet"], ["sonnet.safetensors"], settings_of("sonnet"), WORKER)
    whole, long = (TokenDataset([[5] * t], ["a"], [[6] * t]) for t in (96, 97))
    assert found.beside(make_loader(whole, 1)).dataset is whole
    with pytest.raises(InputError, match="96 positions, and a training text has 97 tokens"):
        found.beside(make_loader(long, 1))
