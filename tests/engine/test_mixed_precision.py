"""float16: torch's own loop as the oracle, steps that overflow, resumed and recorded runs."""

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from course_files import WORKER, call_main, work_in, write_course, write_model
from recorder import CallAgain
from tiny_run import (
    TINY,
    Averager,
    examples,
    run,
    run_path,
    same_bits,
    summed_loss,
    trainer,
    weights,
)
from torch import nn

import classifier
import pretrain
from engine.batches import make_loader
from engine.checkpoint import RunFolder
from engine.errors import InputError
from engine.extension import Extension
from engine.fast.adamw import FusedAdamW
from engine.mixed_precision import LossScaler
from engine.options import lr_multiplier
from engine.trees import load_tree, save_tree
from models.gpt2 import GPT2Model

HUGE = 3000.0  # times a loss: its gradient overflows float16 until S has fallen a good deal
RARE = 7  # the token whose batches have such a loss
LOSS = classifier.TASKS["sst"].loss_fn


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)


def planted_loss(logits, batch):
    """Tensors alone decide, as a recorded step has to have it."""
    planted = (batch["token_ids"] == RARE).any()
    return summed_loss(logits.float(), batch) * torch.where(planted, HUGE, 1.0)


def by_hand(*, epochs=2, accumulate=1, clip=0.0, warmup=0.0, schedule="constant", dropout=0.0):
    """The loop of torch's documentation, "Automatic Mixed Precision examples"."""
    model = Averager(dropout)
    optimizer, scaler = FusedAdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    loader = make_loader(examples(40), 4, shuffle=True)
    total, step = epochs * math.ceil(len(loader) / accumulate), 0
    torch.manual_seed(1)
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        for group in loader.groups(accumulate):
            optimizer.param_groups[0]["lr"] = 0.1 * lr_multiplier(step, total, warmup, schedule)
            optimizer.zero_grad()
            targets = sum(len(batch["labels"]) for batch in group)
            for batch in group:
                with torch.autocast("cpu", torch.float16):
                    logits = model(batch["token_ids"], batch["attention_mask"])
                    loss = planted_loss(logits, batch) / targets
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            step += 1
    return weights(model), scaler.state_dict(), step - optimizer.state[model.head.weight]["step"]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.5},
        {"accumulate": 3, "epochs": 4},
        {"clip": 0.01},
        {"schedule": "cosine", "warmup": 0.3, "epochs": 3},
    ],
)
def test_training_is_torch_s_own_loop_to_the_bit(options, recorded, tmp_path):
    expected, scale, skipped = by_hand(**options)
    model, recorder = Averager(options.get("dropout", 0.0)), CallAgain()
    torch.manual_seed(1)
    options = {"epochs": 2} | {k: v for k, v in options.items() if k != "dropout"}
    progress = run(
        model, tmp_path, rows=40, fp16=True, loss_fn=planted_loss,
        recorders={"cpu": lambda device: recorder} if recorded else {}, **options,
    )  # fmt: skip
    assert same_bits(weights(model), expected)
    assert sum(record["skipped_steps"] for record in progress.history) == skipped > 3
    assert scale["scale"] == 2.0 ** (16 - skipped)
    assert (recorder.replayed > 0) == recorded


def a_run(tmp_path, *, data=None, model=None, **options):
    model = model or Averager()
    loader = make_loader(data or examples(40), 4, shuffle=True)
    return trainer(model, loader, options.pop("loss_fn", planted_loss), tmp_path, **options)


def snapshot(run) -> list:
    """Weights, counters of steps and moments."""
    states = run.optimizer.state.values()
    return [t.clone() if isinstance(t, torch.Tensor) else t for s in states for t in s.values()] + [
        p.detach().clone() for p in run.model.parameters()
    ]


def equal(one: list, other: list) -> bool:
    return len(one) == len(other) > 0 and all(
        bool((a == b).all()) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_that_overflows_leaves_weights_moments_and_counters_as_they_are(tmp_path, clip):
    class Counter(Extension):
        steps = 0

        def after_step(self, model):
            self.steps += 1

    factor, counter = [1.0], Counter()
    run = a_run(
        tmp_path, fp16=True, clip=clip, extensions=[counter],
        loss_fn=lambda logits, batch: summed_loss(logits, batch) * factor[0],
    )  # fmt: skip
    batches = run.loader.batches()
    run.step([next(batches)])
    before, scale = snapshot(run), run.scaler.get_scale()
    factor[0] = 1e6
    run.step([next(batches)])
    assert equal(snapshot(run), before) and run.scaler.get_scale() == scale / 2
    assert (run.progress.skipped, run.progress.step, counter.steps) == (1, 2, 1)
    factor[0] = 1.0
    run.step([next(batches)])
    assert not equal(snapshot(run), before)
    assert (run.progress.skipped, run.progress.step, counter.steps) == (1, 3, 2)


def test_a_run_recovers_from_large_losses_and_says_how_many_steps_it_skipped(tmp_path):
    said, calls = [], itertools.count()

    def large_at_first(logits, batch):
        return summed_loss(logits, batch) * (1e9 if next(calls) < 8 else 1.0)

    model = Averager()
    how = {"rows": 40, "epochs": 12, "log": said.append}
    progress = run(model, tmp_path, loss_fn=large_at_first, fp16=True, **how)
    skipped = [record["skipped_steps"] for record in progress.history]
    assert skipped == [8] + [0] * 11
    assert "skipped steps :: 8, seconds" in said[0]
    plain = run(Averager(), tmp_path / "plain", rows=40, epochs=12).history
    assert "skipped_steps" not in plain[0]
    assert progress.history[-1]["train_loss"] < 2 * plain[-1]["train_loss"] < 0.2


@pytest.mark.parametrize(
    "factor, said", [(1e30, "overflow float16 at every loss scale"), (math.nan, "the loss is nan")]
)
def test_a_run_in_which_every_step_overflows_stops_in_one_line(tmp_path, factor, said):
    with pytest.raises(InputError, match=f"{said}.* or leave --fp16 out") as stop:
        run(
            Averager(), tmp_path, rows=200, fp16=True,
            loss_fn=lambda logits, batch: summed_loss(logits, batch) * factor,
        )  # fmt: skip
    assert "\n" not in str(stop.value)


def test_figures_are_computed_in_float32(tmp_path):
    seen = {"train": [], "dev": []}

    def note(logits, batch):
        seen["train"].append(logits.dtype)
        return summed_loss(logits, batch)

    def evaluate(model):
        batch = next(make_loader(examples(4), 4).batches())
        seen["dev"].append(model(batch["token_ids"], batch["attention_mask"]).dtype)
        return {"dev": 1.0}

    run(Averager(), tmp_path, rows=4, fp16=True, loss_fn=note, evaluate=evaluate)
    assert seen == {"train": [torch.float16], "dev": [torch.float32]}


# -- resumed runs -------------------------------------------------------------------------------


def size_of_head(model) -> dict:
    """A dev figure that tells weights apart."""
    return {"dev": float(model.head.weight.detach().norm())}


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_resumes_to_the_same_bits_while_the_scale_falls(tmp_path, monkeypatch, recorded):
    work_in(monkeypatch, tmp_path)
    recorders = {"cpu": lambda device: CallAgain()} if recorded else {}
    how = {"rows": 40, "epochs": 3, "fp16": True, "loss_fn": planted_loss, "save_minutes": 0}

    def figures(progress) -> list[dict]:
        return [record | {"seconds": 0} for record in progress.history]

    def train(model, folder, **more):
        torch.manual_seed(1)
        return run(model, folder, recorders=recorders, evaluate=size_of_head, **how, **more)

    whole = Averager(dropout=0.5)
    expected = train(whole, "whole")
    for stop_at in ((0, 2), (0, 7), (1, 1)):
        kept = []

        def stop(folder, tree, save=RunFolder.save_last, stop_at=stop_at, kept=kept):
            save(folder, tree)
            if (tree["progress"]["epoch"], tree["progress"]["step"]) == stop_at:
                kept.append((tree["scaler"]["scale"], tree["progress"]["skipped"]))
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("engine.checkpoint.RunFolder.save_last", stop)
            train(Averager(dropout=0.5), str(stop_at))
        assert kept[0][0] < 2**16
        model = Averager(dropout=0.5, seed=3)
        found = train(model, str(stop_at), resume=True)
        assert same_bits(weights(model), weights(whole)) and figures(found) == figures(expected)


def test_a_file_of_before_float16_is_resumed(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    whole, how = Averager(), {"epochs": 2, "evaluate": size_of_head, "save_minutes": 0}
    run(whole, tmp_path / "whole", **how)

    def older(folder, tree, save=RunFolder.save_last):
        old = {key: value for key, value in tree.items() if key != "scaler"}
        old["progress"] = {k: v for k, v in tree["progress"].items() if k != "skipped"}
        save(folder, old)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("engine.checkpoint.RunFolder.save_last", older)
        run(Averager(), tmp_path / "cut", **how)
    model = Averager(seed=3)
    run(model, tmp_path / "cut", resume=True, **how)
    assert same_bits(weights(model), weights(whole))


def test_a_file_without_its_loss_scale_is_refused(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)

    def stop(message):
        if message.startswith("Epoch 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Averager(), tmp_path, epochs=2, fp16=True, log=stop, save_minutes=0)
    path = run_path(tmp_path, "*/last.safetensors")
    save_tree(path, load_tree(path) | {"scaler": {}})
    with pytest.raises(InputError, match=r"last\.safetensors: .*loss scale.* train anew"):
        run(Averager(), tmp_path, epochs=2, fp16=True, resume=True)


# -- recorded steps -----------------------------------------------------------------------------


def test_recorded_steps_read_the_one_tensor_of_the_scale(tmp_path):
    """It is never another one: neither when S changes, nor when a run is resumed."""
    read = []

    class Noting(CallAgain):
        def record(self, work):
            read.append(run.scaler._get_scale_async())
            return super().record(work)

    run = a_run(tmp_path, fp16=True, recorders={"cpu": Noting})
    run.train_epoch()
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 8.0})
    assert read and all(tensor is run.scaler._get_scale_async() for tensor in read)
    assert float(read[0]) == 8.0 and run.progress.skipped > 0


# -- the flags ----------------------------------------------------------------------------------


@pytest.fixture
def t4(monkeypatch):
    """A GPU without bfloat16: of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda **_: SimpleNamespace(type="cuda")
    )


def flags(*words: str):
    task = classifier.TASKS["sst"]
    return task.get_args(["--fine-tune-mode", "full-model", "--dataset", "sst", *words])


@pytest.mark.parametrize("words", [["--bf16"], ["--tf32"]])
def test_a_gpu_before_ampere_is_given_fp16(t4, words, monkeypatch):
    with pytest.raises(InputError, match=rf"^{words[0]}: this GPU has no .* give --fp16$"):
        flags("--use_gpu", *words)
    assert flags("--use_gpu", "--fp16").fp16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    flags("--use_gpu", *words)


def test_two_precisions_are_refused(t4):
    with pytest.raises(InputError, match="--bf16 and --fp16 are two precisions"):
        flags("--use_gpu", "--bf16", "--fp16")


def test_a_cpu_without_units_for_float16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_fp16": False}, raising=False)
    with pytest.raises(InputError, match=r"--fp16: .* add --use_gpu"):
        flags("--fp16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_fp16": True}, raising=False)
    assert flags("--fp16").fp16


TASK_FLAGS = ["--data_dir", "data", "--model_size", "model"]
PROGRAMS = {
    "classifier": [*TASK_FLAGS, "--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": [*TASK_FLAGS, "--accumulate", "2", "--clip", "1"],
    "sonnet_generation": [*TASK_FLAGS, "--max_new_tokens", "4", "--warmup", "0.5"],
    "pretrain": [
        *("--text", "data/sonnets.txt", "--out", "out", "--block", "16", "--vocab_size", "300"),
        *("--steps", "2", "--eval_every", "2"),
    ],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_trains_in_float16_and_predicts_in_float32(program, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=16)
    write_model("model")
    monkeypatch.setattr("engine.machine_flags.has_fp16_units", lambda kind: True)
    monkeypatch.setitem(pretrain.SHAPES, "mini", replace(TINY, vocab_size=300))
    monkeypatch.setattr("engine.stages.draw", lambda *_: None)
    kinds = {True: set(), False: set()}  # of products of matrices, by whether the model trains

    def note(self, *inputs, embed=GPT2Model.embed):
        kinds[self.training].add((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        return embed(self, *inputs)

    monkeypatch.setattr(GPT2Model, "embed", note)
    epochs = [] if program == "pretrain" else ["--epochs", "1"]
    call_main(monkeypatch, program, *PROGRAMS[program], *epochs, "--fp16")
    assert kinds == {True: {torch.float16}, False: {torch.float32}}
    [line] = run_path("runs", "*/metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["skipped_steps"] >= 0


def test_a_scaler_that_is_off_changes_nothing():
    scaler, loss = LossScaler(WORKER.device, enabled=False), torch.ones(())
    assert scaler.scale(loss) is loss and scaler.state_dict() == {}
