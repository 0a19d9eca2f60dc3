"""The one loop: one gradient however it is added up, the best epoch kept, no NaN let through."""

import gc
import itertools
import json
import math
import weakref

import pytest
import torch
from tiny_run import LABELS, Averager, examples, run, run_path, same_bits, summed_loss, weights
from torch.nn import functional as F

from engine.batches import collate
from engine.checkpoint import RunFolder, load_tree
from engine.errors import InputError
from engine.extension import Extension
from engine.optimizers import make_optimizer
from engine.options import FitOptions, lr_multiplier
from engine.trainer import Trainer
from optimizer import AdamW


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)
    monkeypatch.setattr("engine.checkpoint.current_commit", lambda: "a test")


class Plain(Extension):
    """Plain gradient descent, which notes its gradients and rates."""

    def __init__(self):
        self.gradients, self.rates = [], []

    def make_optimizer(self, model, lr, weight_decay):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        optimizer.register_step_pre_hook(lambda optimizer, *_: self.note(model, optimizer))
        return optimizer

    def note(self, model, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        self.rates.append(optimizer.param_groups[0]["lr"])


def gradients(tmp_path, **how) -> list[dict]:
    plain = Plain()
    run(Averager(), tmp_path, extensions=[plain], lr=0.0, **how)
    return plain.gradients


def gradient_by_hand(rows: int) -> dict:
    """Of the mean loss over all rows at once."""
    model, dataset = Averager(), examples(rows)
    batch = collate([dataset[i] for i in range(rows)])
    logits = model(batch["token_ids"], batch["attention_mask"])
    F.cross_entropy(logits, batch["labels"]).backward()
    return {name: p.grad for name, p in model.named_parameters()}


# -- the gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [8, 7, 5])
@pytest.mark.parametrize("batch_size, accumulate", [(8, 1), (4, 2), (2, 4), (3, 3), (1, 8)])
def test_accumulated_steps_have_the_gradient_of_the_one_large_batch(
    tmp_path, rows, batch_size, accumulate
):
    """Also when the last part is smaller than the others."""
    [found] = gradients(tmp_path, rows=rows, batch_size=batch_size, accumulate=accumulate)
    for name, expected in gradient_by_hand(rows).items():
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_out_of_memory_is_answered_by_fewer_rows_at_a_time_and_the_same_gradient(tmp_path, most):
    tried, said = [], []

    def short_of_memory(logits, batch):
        tried.append(len(logits))
        if len(logits) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return summed_loss(logits, batch)

    found = gradients(
        tmp_path, rows=7, batch_size=7, loss_fn=short_of_memory, epochs=2, log=said.append
    )
    assert len(found) == 2
    for name, expected in gradient_by_hand(7).items():
        torch.testing.assert_close(found[0][name], expected, msg=name)
    assert "same batch size" in said[0]
    fits = tried[-1]
    assert all(rows <= most for rows in tried[-math.ceil(7 / fits) :])
    assert sum(rows > most for rows in tried) == len([m for m in said if "out of memory" in m])


def test_the_moments_are_there_before_the_first_forward_pass(tmp_path):
    """So memory that runs out does so where smaller pieces can answer it."""
    made = []

    class Keep(Extension):
        def make_optimizer(self, model, lr, weight_decay):
            made.append(AdamW(model.parameters(), lr=lr))
            return made[0]

    def look(logits, batch):
        [optimizer] = made
        states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
        assert all(state["exp_avg"].shape == state["exp_avg_sq"].shape for state in states)
        return summed_loss(logits, batch)

    run(Averager(), tmp_path, loss_fn=look, extensions=[Keep()])


def test_one_row_that_does_not_fit_ends_the_run(tmp_path):
    def never(logits, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match="out of memory with 1 rows at a time: give a smaller"):
        gradients(tmp_path, loss_fn=never)


def test_no_gradient_is_left_over_from_the_attempt_that_ran_out_of_memory(tmp_path):
    """Half of the pieces were backpropagated already when memory ran out."""
    calls = []

    def second_piece_fails(logits, batch):
        calls.append(len(logits))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return summed_loss(logits, batch)

    [found] = gradients(tmp_path, rows=8, batch_size=4, accumulate=2, loss_fn=second_piece_fails)
    for name, expected in gradient_by_hand(8).items():
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.parametrize("clip", [0.01, 0.1])
def test_clipping_bounds_the_norm_and_keeps_the_direction(tmp_path, clip):
    [free] = gradients(tmp_path / "free", rows=4)
    [clipped] = gradients(tmp_path / "clipped", rows=4, clip=clip)
    flat, cut = (torch.cat([g.flatten() for g in d.values()]) for d in (free, clipped))
    assert flat.norm() > clip
    torch.testing.assert_close(cut, flat * clip / flat.norm(), rtol=1e-4, atol=1e-8)


def test_autocast_to_bfloat16_is_an_option_and_off_by_default(tmp_path):
    kinds = []

    def note(logits, batch):
        kinds.append(logits.dtype)
        return summed_loss(logits.float(), batch)

    run(Averager(), tmp_path, loss_fn=note, rows=4)
    run(Averager(), tmp_path, loss_fn=note, rows=4, bf16=True)
    assert kinds == [torch.float32, torch.bfloat16]


# -- the learning rate -------------------------------------------------------------------------


def test_the_rate_is_constant_unless_a_schedule_is_asked_for():
    assert [lr_multiplier(step, 10, 0.0, "constant") for step in range(10)] == [1.0] * 10


def test_warm_up_rises_linearly_to_one_and_the_schedule_falls_to_zero_after_it():
    total, warmup = 20, 0.25
    for schedule in ("constant", "linear", "cosine"):
        rising = [lr_multiplier(step, total, warmup, schedule) for step in range(5)]
        assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert lr_multiplier(5, total, warmup, schedule) == 1.0
    for i in range(16):
        step, share = 5 + i, i / 15
        assert lr_multiplier(step, total, warmup, "linear") == pytest.approx(1 - share)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        assert lr_multiplier(step, total, warmup, "cosine") == pytest.approx(cosine)
    assert lr_multiplier(20, total, warmup, "linear") == 0.0


def test_the_optimizer_sees_the_rate_of_its_step_over_all_epochs(tmp_path):
    plain = Plain()
    run(Averager(), tmp_path, extensions=[plain], epochs=2, warmup=0.5, schedule="linear")
    factors = [1 / 3, 2 / 3, 1.0, 1.0, 2 / 3, 1 / 3]  # 3 steps an epoch
    assert plain.rates == pytest.approx([0.1 * factor for factor in factors])


def test_groups_keep_the_ratio_of_their_own_rates(tmp_path):
    seen = []

    class Groups(Extension):
        def make_optimizer(self, model, lr, weight_decay):
            groups = [{"params": model.gpt.parameters(), "lr": lr / 10}]
            groups.append({"params": model.head.parameters()})
            self.optimizer = AdamW(groups, lr=lr)
            return self.optimizer

        def after_step(self, model):
            seen.append([group["lr"] for group in self.optimizer.param_groups])

    run(Averager(), tmp_path, extensions=[Groups()], schedule="cosine")
    assert seen[0] == pytest.approx([0.01, 0.1])
    assert all(low == pytest.approx(high / 10) for low, high in seen) and seen[2][1] < 0.1


def test_adamw_gets_the_trainable_parameters_the_rate_and_the_decay():
    model = Averager()
    model.gpt.requires_grad_(False)
    options = FitOptions(epochs=1, lr=0.3, metric="dev", weight_decay=0.2)
    optimizer = make_optimizer(model, options, [Extension()])
    assert isinstance(optimizer, AdamW)
    weights, biases = optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.3, 0.2)
    assert (biases["lr"], biases["weight_decay"]) == (0.3, 0.0)
    trained = [*weights["params"], *biases["params"]]
    assert [id(p) for p in trained] == [id(p) for p in model.head.parameters()]


# -- what a run reports ------------------------------------------------------------------------


def test_train_loss_and_accuracy_are_means_over_the_rows(tmp_path):
    progress = run(Averager(), tmp_path, rows=11, lr=0.0)
    model, dataset = Averager(), examples(11)
    batch = collate([dataset[i] for i in range(11)])
    logits = model(batch["token_ids"], batch["attention_mask"])
    [record] = progress.history
    assert record["train_loss"] == pytest.approx(summed_loss(logits, batch).item() / 11, rel=1e-6)
    right = int((logits.argmax(dim=1) == batch["labels"]).sum())
    assert record["train_acc"] == right / 11


def test_each_epoch_says_loss_accuracy_and_the_dev_figures(tmp_path):
    said = []
    run(Averager(), tmp_path, epochs=2, log=said.append, evaluate=lambda m: {"dev": 0.5, "x": 2.0})
    assert [line.split(":")[0] for line in said] == ["Epoch 0", "Epoch 1"]
    for part in ("train loss :: ", "train acc :: ", "dev :: 0.500", "x :: 2.000"):
        assert all(part in line for line in said)
    lines = run_path(tmp_path, "*/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    assert json.loads(lines[1])["x"] == 2.0


def test_it_learns(tmp_path):
    progress = run(Averager(), tmp_path, rows=60, epochs=30, lr=0.05)
    assert progress.history[-1]["train_acc"] > 0.9 > 2 / LABELS > progress.history[0]["train_acc"]


# -- the best epoch ----------------------------------------------------------------------------


def scripted(tmp_path, values, **options):
    """A run whose dev figures are given; (progress, the model, its weights after each epoch)."""
    model, seen = Averager(), []

    def evaluate(model):
        seen.append(weights(model))
        return {"dev": values[len(seen) - 1]}

    progress = run(model, tmp_path, evaluate=evaluate, epochs=len(values), **options)
    return progress, model, seen


@pytest.mark.parametrize(
    "values, maximize, best",
    [([1, 3, 2], True, 1), ([3, 1, 2], False, 1), ([2, 2, 2], True, 0), ([1, 2, 3], True, 2)],
)
def test_the_model_ends_with_the_weights_of_the_best_epoch(tmp_path, values, maximize, best):
    progress, model, seen = scripted(tmp_path, values, maximize=maximize)
    assert (progress.best_epoch, progress.best) == (best, values[best])
    assert same_bits(weights(model), seen[best])
    assert not same_bits(seen[0], seen[1])
    tree = load_tree(run_path(tmp_path, "*/best.safetensors"))
    assert same_bits(tree["model"], seen[best]) and tree["metrics"]["epoch"] == best


@pytest.mark.parametrize("patience, epochs", [(0, 6), (1, 3), (2, 6)])
def test_patience_ends_a_run_that_gets_no_better(tmp_path, patience, epochs):
    progress, _, _ = scripted(tmp_path, [1, 2, 0, 3, 1, 1], patience=patience)
    assert len(progress.history) == epochs and progress.finished


# -- not finite --------------------------------------------------------------------------------


def nan_at(row: str, from_call: int):
    calls = []

    def loss_fn(logits, batch):
        calls.append(1)
        bad = len(calls) > from_call and row in batch["sent_ids"]
        return summed_loss(logits, batch) * (math.nan if bad else 1.0)

    return loss_fn


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(tmp_path, factor):
    model = Averager()

    def loss_fn(logits, batch):
        return summed_loss(logits, batch) * (factor if "row5" in batch["sent_ids"] else 1.0)

    with pytest.raises(InputError) as stop:
        run(model, tmp_path, loss_fn=loss_fn)
    message = str(stop.value)
    assert f"the loss is {factor}" in message and "epoch 0" in message and "smaller --lr" in message
    ids = message.split("batch ids: ")[1].split(";")[0].split(", ")
    assert "row5" in ids and len(ids) == 4
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("every", [2, 5, 100])
def test_losses_that_are_looked_at_late_are_the_same(tmp_path, monkeypatch, every):
    """As on a GPU: what is recorded, what a save within the epoch holds, and what is said."""
    at_once = run(Averager(), tmp_path / "once", rows=40, save_minutes=0).history
    monkeypatch.setattr("engine.trainer.STEPS_UNREAD", {"cpu": every})
    saved = []

    def save(folder, tree, save_last=RunFolder.save_last):
        saved.append(tree["progress"])
        save_last(folder, tree)

    monkeypatch.setattr("engine.checkpoint.RunFolder.save_last", save)
    late = run(Averager(), tmp_path / "late", rows=40, save_minutes=0).history
    without_time = [{k: v for k, v in line.items() if k != "seconds"} for line in at_once]
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in late] == without_time
    losses = [progress["loss"] for progress in saved if not progress["finished"]]
    assert len(losses) == 9 and all(a < b for a, b in itertools.pairwise(losses))
    with pytest.raises(InputError, match=r"step 0: the loss is nan; batch ids: [row\d, ]+;"):
        run(Averager(), tmp_path / "nan", loss_fn=lambda *these: summed_loss(*these) * math.nan)


def test_the_best_epoch_before_a_nan_is_kept(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(weights(model))
        return {"dev": 1.0}

    with pytest.raises(InputError, match="epoch 1"):
        run(Averager(), tmp_path, epochs=3, evaluate=evaluate, loss_fn=nan_at("row5", 3))
    tree = load_tree(run_path(tmp_path, "*/best.safetensors"))
    assert same_bits(tree["model"], seen[0]) and len(seen) == 1


def test_a_dev_figure_that_is_not_a_number_never_becomes_the_best(tmp_path):
    with pytest.raises(InputError, match="dev is nan"):
        scripted(tmp_path, [1.0, math.nan, 2.0], save_minutes=0)
    tree = load_tree(run_path(tmp_path, "*/best.safetensors"))
    assert tree["metrics"]["epoch"] == 0
    assert load_tree(run_path(tmp_path, "*/last.safetensors"))["progress"]["epoch"] == 1


def test_any_dev_figure_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError, match="step 3: other is inf; the run stops: give a smaller"):
        run(Averager(), tmp_path, evaluate=lambda model: {"dev": 1.0, "other": math.inf})
    assert not list(tmp_path.glob("*/best.safetensors"))


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(tmp_path):
    class Spoiler(Extension):
        def after_step(self, model):
            model.head.bias.data[0] = math.nan

    def evaluate(model):
        raise AssertionError("what is not finite was evaluated")

    with pytest.raises(InputError, match="step 1: a weight is not finite; the run stops: give a"):
        run(Averager(), tmp_path, extensions=[Spoiler()], evaluate=evaluate, rows=4, batch_size=4)
    assert not list(tmp_path.glob("*/best.safetensors"))


# -- repeatable --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(tmp_path):
    ends = []
    for seed in (1, 1, 2):
        model = Averager(dropout=0.5)
        torch.manual_seed(seed)
        run(model, tmp_path / str(len(ends)), epochs=3)
        ends.append(weights(model))
    assert same_bits(ends[0], ends[1])
    assert not same_bits(ends[0], ends[2])


def test_evaluation_leaves_training_as_it_was(tmp_path):
    """Dropout is on in every epoch, though evaluation switches it off."""
    modes = []

    def evaluate(model):
        model.eval()
        return {"dev": 1.0}

    def note(logits, batch):
        modes.append(model.training)
        return summed_loss(logits, batch)

    model = Averager(dropout=0.5)
    run(model, tmp_path, epochs=2, evaluate=evaluate, loss_fn=note)
    assert modes == [True] * 6


def test_what_a_run_held_is_free_when_it_is_over(tmp_path, monkeypatch):
    """Without a search for cycles, which may come late: on a GPU it is gradients and recordings."""
    runs = []

    def noted(*args):
        one = Trainer(*args)
        runs.append(weakref.ref(one))
        return one

    monkeypatch.setattr("engine.training.Trainer", noted)
    model = Averager()
    make_optimizer(model, FitOptions(epochs=1, lr=0.1, metric="dev"), [])  # torch imports more
    gc.collect()
    gc.disable()
    try:
        run(model, tmp_path)
        assert runs[0]() is None and all(p.grad is None for p in model.parameters())
    finally:
        gc.enable()
