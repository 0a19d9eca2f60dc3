"""Pre-training: text in, a folder out that transformers loads with equal logits; exact resume."""

import hashlib
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import at_write, in_child
from course_files import (
    FEELINGS,
    THINGS,
    VERSES,
    WORKER,
    call_main,
    no_training,
    predicted,
    work_in,
    write,
    write_course,
)
from recorder import CallAgain
from technique_cases import NAMES, those_whose
from tiny_run import interrupt_after_save, run_path, same_bits
from transformers import AutoModelForCausalLM, AutoTokenizer

import pretrain
from config import GPT2Config
from engine import files, throughput, token_files
from engine.checkpoint import load_tree
from engine.corpus import TokenBlocks
from engine.errors import InputError
from engine.extension import Extension
from engine.files import ROOT
from engine.parallel import Worker
from engine.recorder import RECORDERS
from models.gpt2 import GPT2Model

TINY = GPT2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
)
FLAGS = ["--block", "32", "--batch_size", "4", "--vocab_size", "400", "--lr", "3e-3"]
SHORT = [*FLAGS, "--steps", "6", "--eval_every", "3", "--save_minutes", "0"]


def no_curves(self, *_):
    """Drawing takes longer than the rest of these runs."""
    if self.writes:
        (self.path / "curves.png").write_bytes(b"curves")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text of a few hundred short documents."""
    work_in(monkeypatch, tmp_path)
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", no_curves)
    monkeypatch.setitem(pretrain.SHAPES, "mini", TINY)
    draw = random.Random(0)
    texts = ["\n".join(draw.choices(VERSES, k=6)) for _ in range(200)]
    texts += [f"the {draw.choice(THINGS)} was {draw.choice(FEELINGS)}" for _ in range(200)]
    draw.shuffle(texts)
    write("text.txt", "\n<|endoftext|>\n".join(texts))
    write("valid.txt", "\n<|endoftext|>\n".join(draw.sample(texts, 30)))
    return tmp_path


def run(monkeypatch, *extra) -> None:
    words = ["--text", "text.txt", "--valid", "valid.txt", "--out", "out", *extra]
    call_main(monkeypatch, "pretrain", *words)


def log(folder="runs") -> list[dict]:
    path = run_path(folder, "pretrain-*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def made(folder) -> list[dict]:
    """The log that a trained model's folder keeps."""
    lines = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def weights(folder="runs") -> dict:
    return load_tree(run_path(folder, "pretrain-*/best.safetensors"))["model"]


# -- what comes out ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_loads_the_folder_with_equal_logits(place, monkeypatch, dtype):
    run(monkeypatch, *SHORT, "--dtype", dtype)
    ours = GPT2Model.from_pretrained("out").eval()
    theirs = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    encoded = tokenizer(VERSES[0] + " yes", return_tensors="pt")
    with torch.no_grad():
        found = ours.hidden_state_to_token(ours(encoded["input_ids"])["last_hidden_state"])
        torch.testing.assert_close(found, theirs(**encoded).logits, atol=1e-4, rtol=0)
    assert theirs.config.eos_token_id == tokenizer.eos_token_id
    stored = AutoModelForCausalLM.from_pretrained("out", dtype="auto").dtype
    assert stored == getattr(torch, dtype)
    if dtype == "float32":
        best = weights()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, best[f"gpt.{name}"])


def test_the_saved_model_has_gpt2_s_dropout_for_fine_tuning(place, monkeypatch):
    run(monkeypatch, *SHORT)
    assert GPT2Model.from_pretrained("out").config.hidden_dropout_prob == 0.1
    assert load_tree(run_path("runs", "pretrain-*/best.safetensors"))["settings"]["dropout"] == 0


def test_a_task_takes_the_folder(place, monkeypatch):
    run(monkeypatch, *SHORT)
    write_course("data")
    flags = ["--data_dir", "data", "--model_size", "out", "--epochs", "1"]
    call_main(monkeypatch, "classifier", *flags, "--dataset", "sst")
    assert len(predicted("predictions/pretrain-sst-dev-out.csv")) == 20
    call_main(monkeypatch, "paraphrase_detection", *flags)
    assert set(predicted("predictions/para-dev-output.csv").values()) <= {"3919", "8505"}


def test_it_learns_the_text(place, monkeypatch, capsys):
    run(monkeypatch, *FLAGS, "--steps", "150", "--eval_every", "50", "--warmup", "0.1")
    losses = [record["val_loss"] for record in log()]
    assert losses[0] < math.log(400) and losses[-1] < 1.2 < losses[0]
    said = capsys.readouterr().out
    samples = [line for line in said.splitlines() if line.startswith("  sample: ")]
    assert len(samples) == 3
    known = [*VERSES, *THINGS, *FEELINGS]
    assert any(word in samples[-1] for word in known)


def test_the_log_says_how_well_and_how_fast(place, monkeypatch):
    run(monkeypatch, *SHORT)
    for record in log():
        assert record["val_perplexity"] == pytest.approx(math.exp(record["val_loss"]))
        rate = 3 * 4 * 32 / record["seconds"]
        assert record["tokens_per_second"] == pytest.approx(rate, rel=0.5)
    facts = json.loads(Path("out/training.json").read_text(encoding="utf-8"))
    valid = json.loads(next(Path("runs").glob("tokens-*/valid.json")).read_text(encoding="utf-8"))
    bits = facts["val_loss"] / math.log(2) * valid["tokens"] / valid["bytes"]
    assert facts["bits_per_byte"] == pytest.approx(bits)
    assert facts["steps"] in (3, 6) and facts["tokens"] == facts["steps"] * 4 * 32
    assert made("out") == [r | {"tokens": (r["epoch"] + 1) * 3 * 4 * 32} for r in log()]
    assert Path("out/curves.png").read_bytes().startswith(b"\x89PNG")


# -- what is trained ---------------------------------------------------------------------------


def test_the_loss_is_transformers_loss(place, monkeypatch):
    run(monkeypatch, *SHORT)
    model = AutoModelForCausalLM.from_pretrained("out").eval()
    blocks = TokenBlocks(next(Path("runs").glob("tokens-*/valid.bin")), 32)
    with torch.no_grad():
        losses = []
        for i in range(len(blocks)):
            logits = model(blocks[i]["token_ids"][None]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, blocks[i]["labels"]))
    facts = json.loads(Path("out/training.json").read_text(encoding="utf-8"))
    assert facts["val_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_an_extension_s_optimizer_takes_the_place_of_adamw(place, monkeypatch):
    class Descent(Extension):
        def make_optimizer(self, model, lr, weight_decay):
            return torch.optim.SGD(model.parameters(), lr=lr)

    monkeypatch.setattr(pretrain, "load_extensions", lambda flags: [Descent()])
    run(monkeypatch, *SHORT, "--eval_every", "2")
    assert len(log()) == 3


COMPARING = those_whose(lambda extension: type(extension).penalty is not Extension.penalty)


@pytest.mark.parametrize("technique", COMPARING)
def test_a_technique_that_compares_logits_is_refused(technique, place, monkeypatch, refused):
    with refused(f"--extension {technique}: it compares logits, which pre-training does not keep"):
        run(monkeypatch, *SHORT, "--extension", technique)


def test_training_goes_on_from_a_folder(place, monkeypatch):
    run(monkeypatch, *SHORT)
    before = json.loads(Path("out/training.json").read_text(encoding="utf-8"))
    more = [*SHORT, "--init", "out", "--tokenizer", "out", "--lr", "0", "--runs_dir", "more"]
    run(monkeypatch, *more, "--out", "next")
    after = json.loads(Path("next/training.json").read_text(encoding="utf-8"))
    assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-6)
    assert after["before"] == before and "before" not in before
    first, second = made("out"), made("next")
    assert second[: len(first)] == first and len(second) == 2 * len(first)
    assert second[-1]["tokens"] == 2 * first[-1]["tokens"]


def test_weights_of_another_shape_are_refused(place, monkeypatch, capsys):
    run(monkeypatch, *SHORT)
    more = [*SHORT, "--init", "out", "--block", "128", "--runs_dir", "more"]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *more)
    assert stop.value.code == 2 and "out: a checkpoint of another model" in capsys.readouterr().err


def test_a_checkpoint_of_a_run_becomes_a_folder_without_training(place, monkeypatch):
    run(monkeypatch, *SHORT)
    best = run_path("runs", "pretrain-*/best.safetensors")
    monkeypatch.setattr(pretrain, "fit", None)
    run(monkeypatch, *SHORT, "--checkpoint", str(best), "--out", "other")
    one, other = (Path(name, "model.safetensors").read_bytes() for name in ("out", "other"))
    assert one == other


# -- never lose work ---------------------------------------------------------------------------


def test_a_run_killed_at_any_write_resumes_to_the_same_bits(place, monkeypatch):
    writes, sync = [], files.sync
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", lambda path: (writes.append(path), sync(path)))
        run(patch, *SHORT, "--runs_dir", "whole", "--dropout", "0.1")
    expected, figures = weights("whole"), [r["val_loss"] for r in log("whole")]
    for number in sorted({1, 3, 5, 8, len(writes) // 3, len(writes) // 2, len(writes) - 4}):
        folder = f"killed-{number}"
        flags = [*SHORT, "--runs_dir", folder, "--dropout", "0.1"]
        with monkeypatch.context() as patch:
            at_write(patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            status = in_child(lambda patch=patch, flags=flags: run(patch, *flags))
        assert os.WIFSIGNALED(status)
        saved = list(Path(folder).glob("pretrain-*/last.safetensors"))
        run(monkeypatch, *flags, *(["--resume"] if saved else []))
        found = weights(folder)
        assert all(torch.equal(expected[name], found[name]) for name in expected), number
        assert [r["val_loss"] for r in log(folder)] == figures


def test_the_tokens_are_made_once(place, monkeypatch):
    run(monkeypatch, *SHORT)
    monkeypatch.setattr(token_files, "write_tokens", None)
    run(monkeypatch, *SHORT, "--lr", "1e-4")
    assert len(list(Path("runs").glob("tokens-*"))) == 1


@pytest.mark.parametrize("valid", [["--valid", "valid.txt"], []])
def test_each_document_is_read_once_but_for_a_look_at_the_first(valid, place, monkeypatch):
    drawn = []

    def documents(paths, real=token_files.documents):
        for text in real(paths):
            drawn.append(text)
            yield text

    monkeypatch.setattr(token_files, "documents", documents)
    args = pretrain.get_args(["--text", "text.txt", *valid, "--out", "out", *SHORT])
    folder = token_files.prepare_data(args, WORKER)
    assert len(drawn) == (1 + 400) + (1 + 30 if valid else 0)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert {path.split(".")[0] for path in names} == {
        *("config", "tokenizer", "tokenizer_config", "train", "valid")
    }


def test_two_processes_at_half_the_batch_follow_the_single_one(place, monkeypatch):
    run(monkeypatch, *SHORT, "--runs_dir", "single")
    code = "import sys; sys.path.insert(0, {!r}); import pretrain; from config import GPT2Config\n"
    code += "pretrain.SHAPES['mini'] = {!r}\npretrain.main()\n"
    script = write("tiny_pretrain.py", code.format(str(ROOT), TINY))
    words = ["--text", "text.txt", "--valid", "valid.txt", "--out", "pair-out", *SHORT]
    words += ["--batch_size", "2", "--runs_dir", "pair"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for one, two in zip(log("single"), log("pair"), strict=True):
        for key in ("train_loss", "val_loss"):
            assert two[key] == pytest.approx(one[key], abs=1e-5)
    assert done.stdout.count("pretrain: ") == 1


# -- recorded steps ----------------------------------------------------------------------------


def figures(folder: str) -> list[dict]:
    return [record | {"seconds": 0, "tokens_per_second": 0} for record in log(folder)]


MUON = [["--extension", name] for name in NAMES if name == "muon"]


@pytest.mark.parametrize("extra", [[], ["--accumulate", "2"], *MUON])
def test_all_steps_but_the_first_replay_one_recording_bit_for_bit_and_so_after_a_resume(
    extra, place, monkeypatch
):
    recorders = []

    def make(device):
        recorders.append(CallAgain())
        return recorders[-1]

    flags = [*SHORT, "--dropout", "0.1", *extra]
    run(monkeypatch, *flags, "--runs_dir", "eager")
    monkeypatch.setitem(RECORDERS, "cpu", make)
    run(monkeypatch, *flags, "--runs_dir", "recorded")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_after_save(patch, epoch=1, step=1)
        run(patch, *flags, "--runs_dir", "cut")
    run(monkeypatch, *flags, "--runs_dir", "cut", "--resume")
    batches = 2 if "--accumulate" in extra else 1
    counts = [(recorder.eager, recorder.recorded, recorder.replayed) for recorder in recorders]
    assert counts == [(batches, 1, steps * batches) for steps in (5, 3, 1)]
    for folder in ("recorded", "cut"):
        assert same_bits(weights("eager"), weights(folder))
        assert figures(folder) == figures("eager")


@pytest.mark.parametrize("flags", [["--eager"], ["--eager", "--compile"]])
def test_eager_steps_are_not_recorded(flags, place, monkeypatch):
    monkeypatch.setitem(RECORDERS, "cpu", lambda device: pytest.fail("a recorder was made"))
    monkeypatch.setattr("engine.trainer.compiled", lambda network, *_, **__: network)
    run(monkeypatch, *SHORT, *flags)
    assert len(log()) == 2


@pytest.fixture
def compilations(monkeypatch):
    """The graphs that torch.compile makes, with kernels that need no compiler."""
    graphs, compile_ = [], torch.compile

    def backend(graph, inputs):
        graphs.append(inputs)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(
        "torch.compile",
        lambda model, dynamic, mode: compile_(model, dynamic=dynamic, backend=backend),
    )
    yield graphs
    torch._dynamo.reset()


def test_compiled_steps_are_recorded_too_and_are_compiled_once_before(
    place, monkeypatch, compilations
):
    """A recording of them gives the bits of compiled steps without one, also after a resume."""
    monkeypatch.setitem(pretrain.SHAPES, "mini", replace(TINY, num_hidden_layers=1))
    flags = [*SHORT, "--dropout", "0.1", "--compile"]
    run(monkeypatch, *flags, "--eager", "--runs_dir", "eager")
    once, compiled_at = len(compilations), []
    recorder = CallAgain()

    def record(work, record=recorder.record):
        compiled_at.append(len(compilations))
        return record(work)

    monkeypatch.setattr(recorder, "record", record)
    monkeypatch.setitem(RECORDERS, "cpu", lambda device: recorder)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_after_save(patch, epoch=1, step=1)
        run(patch, *flags, "--runs_dir", "cut")
    assert (recorder.eager, recorder.recorded, recorder.replayed) == (1, 1, 3)
    run(monkeypatch, *flags, "--runs_dir", "cut", "--resume")
    assert (recorder.eager, recorder.recorded, recorder.replayed) == (2, 2, 4)
    assert once > 0 and compiled_at == [2 * once, 3 * once] and len(compilations) == 3 * once
    assert all(type(n) is int for inputs in compilations for t in inputs for n in t.shape)
    assert same_bits(weights("eager"), weights("cut"))
    assert figures("cut") == figures("eager")


# -- speed -------------------------------------------------------------------------------------


def test_flops_are_palm_s_count():
    config = GPT2Config()
    assert throughput.flops_per_token(config, 124_000_000, 1024) == (
        6 * 124_000_000 + 12 * 12 * 768 * 1024
    )


def test_utilization_is_the_share_of_the_gpu_s_peak(monkeypatch):
    model = torch.nn.Module()
    model.gpt = torch.nn.Linear(10, 10)
    model.gpt.config = GPT2Config(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    gpus = Worker(torch.device("cuda"), world_size=2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    rate = 2 * 989e12 / (6 * 110 + 12 * 8 * 4)
    assert throughput.utilization(model, rate, 4, gpus) == {"mfu": pytest.approx(1.0)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some other GPU")
    assert throughput.utilization(model, rate, 4, gpus) == {}
    assert throughput.utilization(model, rate, 4, Worker(torch.device("cpu"))) == {}


# -- divergence --------------------------------------------------------------------------------


DIVERGED = ("the loss is nan", "the loss is inf", "a weight is not finite", "val_perplexity is inf")


@pytest.mark.parametrize("more", ["", "--clip 0", "--eval_every 1", "--eval_every 1 --clip 0"])
@pytest.mark.parametrize("lr", ["30", "1000"])
def test_a_run_that_diverges_stops_with_one_line(lr, more, place, monkeypatch, capsys):
    """What it is seen by first depends on the processor's rounding."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *SHORT, "--warmup", "0", "--lr", lr, *more.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: epoch ") and error.count("\n") == 1
    assert any(f": {said}; " in error for said in DIVERGED)
    assert "; the run stops: give a smaller --lr or --clip 1" in error
    assert not list(Path("out").iterdir()) and not list(Path("runs").glob("*/best.safetensors"))


# -- the kept tokens ---------------------------------------------------------------------------


def damage_tokens(kind: str, folder: Path) -> None:
    path, facts = folder / "train.bin", folder / "train.json"
    content = path.read_bytes()
    if kind == "half":
        path.write_bytes(content[: len(content) // 4 * 2])
    elif kind == "odd length":
        path.write_bytes(content[:-1])
    elif kind == "one token":
        path.write_bytes(b"\x00\x01" + content[2:])
    elif kind == "outside the vocabulary":
        content = b"\xff\xff" + content[2:]
        path.write_bytes(content)
        known = json.loads(facts.read_text(encoding="utf-8"))
        facts.write_text(json.dumps(known | {"sha256": hashlib.sha256(content).hexdigest()}))
    elif kind == "no facts":
        facts.write_text("null")
    else:
        facts.write_text('{"dtype": "object", "tokens": -1, "bytes": 0}')


def test_what_killed_runs_left_goes_at_the_next_start(place, monkeypatch):
    """Also where the tokens are whole already, and the folder is not written again."""
    args = pretrain.get_args(["--text", "text.txt", "--out", "out", *SHORT])
    folder = token_files.prepare_data(args, WORKER)
    left = [folder / ".train.bin.abc.tmp", Path("out/.model.safetensors.abc.tmp")]
    left += [Path(".out.abc.tmp/model.safetensors")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    monkeypatch.setattr(pretrain, "shape_of", no_training)
    with pytest.raises(AssertionError, match="training began"):
        pretrain.run(args, WORKER)
    assert not list(Path().rglob("*.tmp"))


@pytest.mark.parametrize(
    "kind, said",
    [
        ("half", "train.bin: "),
        ("odd length", "bytes, expected"),
        ("one token", "its content differs from the checksum beside it"),
        ("outside the vocabulary", "found token 65535, expected below "),
        ("no facts", "train.json: no facts of a token file"),
        ("other facts", "train.json: no facts of a token file"),
    ],
)
def test_kept_tokens_that_are_damaged_are_refused(kind, said, place):
    args = pretrain.get_args(["--text", "text.txt", "--out", "out", *SHORT])
    folder = token_files.prepare_data(args, WORKER)
    damage_tokens(kind, folder)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        token_files.prepare_data(args, WORKER)
    assert f"delete the folder {folder}" in str(caught.value)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--text", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--steps", "7"], "--steps 7: expected a multiple of --eval_every"),
        (["--vocab_size", "10"], "--vocab_size 10: expected at least 257"),
        (["--block", "0"], "--block 0: expected at least 1"),
        (["--dropout", "2"], "--dropout 2.0: expected from 0 to 1"),
        (
            ["--text", "small.txt", "--valid"],
            "do not fill a block of 32, which takes 33: give more",
        ),
        (["--text", "empty.txt"], "empty.txt: no text, expected a document"),
        (["--valid", "empty.txt"], "empty.txt: no text, expected a document"),
        (["--block", "60000"], "do not fill a block of 60000, which takes 60001: give more text"),
        (["--out", "text.txt/deep"], "cannot be written"),
        (["--init", "./nowhere"], "./nowhere: no such folder"),
    ],
)
def test_a_mistake_is_said_in_one_line(place, monkeypatch, capsys, flags, said):
    write("small.txt", "one document")
    write("empty.txt", "\n<|endoftext|>\n\n")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *SHORT, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1
    assert not Path("out").exists() or not list(Path("out").iterdir())


def test_without_a_validation_text_the_last_documents_are_kept_out(place, monkeypatch, capsys):
    call_main(monkeypatch, "pretrain", "--text", "text.txt", "--out", "out", *SHORT)
    assert "the last 4 of the documents are kept out" in capsys.readouterr().out
    facts = {
        name: json.loads(next(Path("runs").glob(f"tokens-*/{name}.json")).read_text("utf-8"))
        for name in ("train", "valid")
    }
    assert (facts["train"]["documents"], facts["valid"]["documents"]) == (396, 4)


@pytest.mark.parametrize("ends", [[], [0.3], [0.5, 0.99]])
def test_of_few_documents_the_last_tenth_of_the_tokens_is_kept_out(
    ends, place, monkeypatch, capsys
):
    """Without a line of <|endoftext|> a file is one document; the last one may be short."""
    text = Path("text.txt").read_text(encoding="utf-8").replace("<|endoftext|>\n", "")
    places = [0, *(int(len(text) * end) for end in ends), len(text)]
    parts = [text[i:j].strip() for i, j in itertools.pairwise(places)]
    write("few.txt", "\n<|endoftext|>\n".join(parts))
    call_main(monkeypatch, "pretrain", "--text", "few.txt", "--out", "out", *SHORT)
    said = "no --valid: the last tenth of the tokens is kept out for validation; documents: "
    assert f"{said}{len(parts)}\n" in capsys.readouterr().out
    train, valid = (
        json.loads(next(Path("runs").glob(f"tokens-*/{name}.json")).read_text("utf-8"))
        for name in ("train", "valid")
    )
    assert valid["tokens"] == pytest.approx((train["tokens"] + valid["tokens"]) / 10, abs=4)
    assert train["bytes"] + valid["bytes"] == sum(len(part.encode()) for part in parts)
    facts = json.loads(Path("out/training.json").read_text(encoding="utf-8"))
    bits = facts["val_loss"] / math.log(2) * valid["tokens"] / valid["bytes"]
    assert facts["bits_per_byte"] == pytest.approx(bits)


def test_the_tokenizer_is_not_learnt_from_the_text_that_is_kept_out(place, monkeypatch):
    learnt, real = [], token_files.train_tokenizer

    def train_tokenizer(texts, vocab_size):
        learnt.extend(texts)
        return real(learnt, vocab_size)

    monkeypatch.setattr(token_files, "train_tokenizer", train_tokenizer)
    text = "red and blue " * 200
    write("one.txt", text)
    call_main(monkeypatch, "pretrain", "--text", "one.txt", "--out", "out", *SHORT)
    assert learnt == [text.strip()[: int(0.9 * len(text.strip()))]]


def test_settings_that_are_missing_are_refused():
    with pytest.raises(InputError, match="required: --text"):
        pretrain.get_args(["--out", "x"])
    with pytest.raises(InputError):
        pretrain.get_args(["--text", "a", "--out", "x", "--lr", "nan"])
