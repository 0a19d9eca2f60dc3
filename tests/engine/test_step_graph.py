"""Recorded steps: the eager loop's losses and weights, whatever is recorded, and when."""

import math
from dataclasses import replace
from functools import partial
from operator import attrgetter

import pytest
import torch
from course_files import WORKER, call_main, work_in, write_course, write_model
from recorder import CallAgain, Capture
from technique_cases import those_whose
from tiny_run import (
    Averager,
    assert_same_results,
    examples,
    interrupt_after_save,
    run,
    same_bits,
    summed_loss,
    tiny_classifier,
    weights,
)
from tiny_run import trainer as new_trainer

import classifier
from engine.batches import TokenDataset, collate, make_loader
from engine.errors import InputError
from engine.extension import Extension, apply_extensions, load_extensions
from engine.options import FitOptions
from engine.parallel import Worker
from engine.recorded_gradients import RecordedGradients, may_record
from engine.recorder import RECORDERS
from engine.step_graph import StepGraphs

TASKS = ["classifier", "paraphrase_detection", "sonnet_generation"]


@pytest.fixture
def recorders():
    """The recorder of each run that a mapping gives one to."""
    made = []

    def make(device):
        made.append(CallAgain())
        return made[-1]

    return made, {"cpu": make}


def texts(rows: int) -> TokenDataset:
    """Of 3 to 20 tokens: three lengths once they are rounded up."""
    ids = [[1 + (3 * i + j) % 39 for j in range(3 + 7 * i % 18)] for i in range(rows)]
    return TokenDataset(ids, [f"row{i}" for i in range(rows)], [i % 5 for i in range(rows)])


def trained(tmp_path, recorders, *, rows=50, epochs=2, extensions=(), data=texts, **options):
    """The weights and the progress of a tiny classifier in float64 after some epochs."""
    model = tiny_classifier()
    torch.manual_seed(1)
    apply_extensions(model, load_extensions(extensions))
    model.double()
    loader = make_loader(data(rows), 4, shuffle=True)
    options = {"lr": 1e-3, "epochs": epochs} | options
    run = new_trainer(
        model, loader, classifier.TASKS["sst"].loss_fn, tmp_path, recorders=recorders,
        extensions=model.extensions, **options,
    )  # fmt: skip
    torch.manual_seed(2)
    for _ in range(epochs):
        run.train_epoch()
        run.progress.epoch += 1
        run.progress.step = 0
    return weights(model), run.progress


# -- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 3},
        {"clip": 0.1, "weight_decay": 0.1},
        {"schedule": "cosine", "warmup": 0.2},
        {"rows": 51},  # the last batch is uneven
        {"rows": 3},  # nothing but an uneven batch
    ],
)
def test_replayed_steps_give_the_eager_loop_s_losses_and_weights(tmp_path, recorders, options):
    made, mapping = recorders
    expected, progress = trained(tmp_path, {}, **options)
    found, other = trained(tmp_path, mapping, **options)
    [recorder] = made
    assert recorder.replayed > 0 or options == {"rows": 3}
    assert other.loss == pytest.approx(progress.loss, rel=1e-12)
    assert (other.correct, other.targets) == (progress.correct, progress.targets)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=1e-9, msg=name)


def test_without_padding_to_add_the_bits_are_the_same(tmp_path, recorders):
    _, mapping = recorders
    ends = []
    for given in ({}, mapping):
        model = Averager(dropout=0.5)
        loader = make_loader(whole_lengths(40), 4, shuffle=True)
        torch.manual_seed(1)
        step = new_trainer(
            model, loader, classifier.TASKS["sst"].loss_fn, tmp_path, recorders=given
        )
        step.train_epoch()
        ends.append((weights(model), step.progress.loss))
    assert same_bits(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def whole_lengths(rows: int) -> TokenDataset:
    """Of 8 or 16 tokens each."""
    ids = [[1 + (i + j) % 19 for j in range(8 * (1 + i % 2))] for i in range(rows)]
    return TokenDataset(ids, [f"row{i}" for i in range(rows)], [i % 3 for i in range(rows)])


def now_without_looks(gradients, begin=RecordedGradients.after_step) -> None:
    """From the first step on, techniques wait for no number after a step."""
    if not gradients.graphs.begun:
        for extension in gradients.objective.extensions:
            extension.after_step = partial(without_looks, extension.after_step)
    begin(gradients)


def without_looks(call, *args) -> None:
    with Capture():
        call(*args)


RECORDABLE = [[name] for name in those_whose(attrgetter("recordable"))]
TOGETHER = [["sam", "qat"]] if RECORDABLE else []  # with extensions/ alone


@pytest.mark.parametrize("techniques", RECORDABLE + TOGETHER, ids="-".join)
def test_techniques_that_change_modules_are_recorded_and_learn_the_same(
    tmp_path, recorders, techniques, monkeypatch
):
    made, mapping = recorders
    how = {"extensions": techniques, "lr": 1e-2, "accumulate": 2, "data": whole_lengths}
    expected, _ = trained(tmp_path, {}, **how)
    monkeypatch.setattr(RecordedGradients, "after_step", now_without_looks)
    found, _ = trained(tmp_path, mapping, **how)
    assert made[0].replayed > 0
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=1e-9, msg=name)


def test_dropout_draws_anew_in_each_replay_and_follows_the_seed(tmp_path, recorders):
    made, mapping = recorders
    losses = []

    def note(logits, batch):
        loss = classifier.TASKS["sst"].loss_fn(logits, batch)
        losses.append(loss.detach())
        return loss

    model = tiny_classifier(0.5)
    same_row = TokenDataset([[1] * 8] * 6, list("abcdef"), [0] * 6)
    run = new_trainer(model, make_loader(same_row, 1), note, tmp_path, recorders=mapping, lr=0.0)
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        run.progress.step = 0
        run.train_epoch()
    losses = torch.stack(losses).tolist()
    assert made[0].eager == 1 and len(set(losses[:6])) == 6
    assert losses[:6] == losses[6:12] != losses[12:]


# -- what is recorded ---------------------------------------------------------------------------


def graphs_of(model, recorder, log=print, **how) -> StepGraphs:
    def backward(batch, targets, share):
        logits = model(batch["token_ids"], batch["attention_mask"])
        loss = classifier.TASKS["sst"].loss_fn(logits, batch)
        (loss / targets).backward()
        return torch.stack([loss.detach().double(), share.double()])

    parameters = list(model.parameters())
    device, most = WORKER.device, math.inf
    graphs = StepGraphs(
        backward, parameters, recorder, device=device, most_positions=most, log=log, **how
    )
    graphs.begun = True
    return graphs


def batch_of(*lengths: int) -> dict:
    examples_ = [
        {"index": i, "sent_id": str(i), "label": i % 3, "token_ids": [1 + i % 9] * length}
        for i, length in enumerate(lengths)
    ]
    return collate(examples_)


def feed(graphs: StepGraphs, *steps: list[dict]) -> None:
    for step in steps:
        graphs.begin()
        for batch in step:
            graphs.add(batch, len(step), 1.0)


def test_a_shape_is_recorded_when_a_later_step_brings_it_again():
    recorder = CallAgain()
    graphs = graphs_of(Averager(), recorder)
    feed(graphs, [batch_of(3, 5), batch_of(8, 2)])  # one shape, one step: both run eagerly
    assert (recorder.eager, recorder.recorded, recorder.replayed) == (2, 0, 0)
    feed(graphs, [batch_of(7, 7)], [batch_of(1, 4)], [batch_of(9, 4)])
    assert (recorder.eager, recorder.recorded, recorder.replayed) == (3, 1, 2)


def test_nothing_is_recorded_before_a_step_is_made():
    recorder = CallAgain()
    graphs = graphs_of(Averager(), recorder)
    graphs.begun = False
    feed(graphs, [batch_of(8)], [batch_of(8)], [batch_of(8)])
    assert (recorder.eager, recorder.recorded) == (3, 0)
    graphs.begun = True
    feed(graphs, [batch_of(8)])
    assert (recorder.eager, recorder.recorded) == (3, 1)


def test_an_uneven_last_batch_is_never_recorded():
    recorder = CallAgain()
    feed(graphs_of(Averager(), recorder), [batch_of(3, 5)], *[[batch_of(3)] for _ in range(3)])
    assert (recorder.eager, recorder.recorded) == (4, 0)


@pytest.mark.parametrize("limits", [{"most_shapes": 2}, {"room": 2}])
def test_beyond_so_many_shapes_or_so_much_memory_batches_run_eagerly_and_a_line_says_so(limits):
    said = []
    recorder = CallAgain(room=limits.get("room", 1000))
    shapes = {"most_shapes": limits["most_shapes"]} if "most_shapes" in limits else {}
    graphs = graphs_of(Averager(), recorder, log=said.append, **shapes)
    steps = [[batch_of(length)] for length in (8, 16, 24, 32)]
    feed(graphs, *steps, *steps, *steps)
    assert (recorder.recorded, recorder.replayed, recorder.eager) == (2, 4, 8)
    assert said == ["2 shapes of batches are recorded as CUDA graphs; others run eagerly"]


def test_gradients_stay_at_one_place_and_add_up_over_the_batches_of_a_step():
    model, recorder = Averager(), CallAgain()
    graphs = graphs_of(model, recorder)
    batch = batch_of(8, 8)
    feed(graphs, [batch])
    one = {name: p.grad.clone() for name, p in model.named_parameters()}
    places = [p.grad.data_ptr() for p in model.parameters()]
    feed(graphs, [batch], [batch, batch, batch])
    assert recorder.replayed == 4
    assert [p.grad.data_ptr() for p in model.parameters()] == places
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, one[name], msg=name)
    assert graphs.figures[1] == 3.0  # three batches, each with the share that it was given


def test_gradients_that_somebody_takes_away_come_back():
    """A recording writes to their memory, whoever has it."""
    model = Averager()
    graphs, batch = graphs_of(model, CallAgain()), batch_of(8, 8)
    feed(graphs, [batch], [batch])
    gradients = [p.grad for p in model.parameters()]
    expected = [gradient.clone() for gradient in gradients]
    model.zero_grad(set_to_none=True)
    feed(graphs, [batch])
    for parameter, gradient, value in zip(model.parameters(), gradients, expected, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, value)


class Capturing(CallAgain):
    def record(self, work):
        work()  # like a capture, it makes the gradients that are not there yet
        return super().record(work)


def test_a_gradient_that_a_recording_begins_comes_back_too():
    model = Averager()
    graphs, batch, bias = graphs_of(model, Capturing()), batch_of(8, 8), model.head.bias
    bias.requires_grad_(False)
    feed(graphs, [batch])
    bias.requires_grad_(True)
    feed(graphs, [batch])
    gradient, bias.grad = bias.grad, None
    feed(graphs, [batch])
    assert bias.grad is gradient and gradient.any()
    graphs.begin()
    assert not gradient.any()


def test_a_gradient_that_an_eager_batch_begins_is_set_to_0_in_the_next_step():
    model = Averager()
    graphs, batch, bias = graphs_of(model, CallAgain()), batch_of(8, 8), model.head.bias
    bias.requires_grad_(False)
    feed(graphs, [batch], [batch])
    bias.requires_grad_(True)
    feed(graphs, [batch_of(20, 20)])
    gradient = bias.grad
    graphs.begin()
    assert bias.grad is gradient and not gradient.any()


def test_gradients_are_looked_for_only_where_they_have_changed(monkeypatch):
    model, looks = Averager(), []
    graphs, batch = graphs_of(model, CallAgain()), batch_of(8, 8)
    look = graphs._look_at_gradients
    monkeypatch.setattr(graphs, "_look_at_gradients", lambda: (looks.append(graphs.steps), look()))
    feed(graphs, *[[batch]] * 6)
    assert looks == [1, 2]  # after the eager step, and when it was recorded
    model.head.weight.grad = None
    feed(graphs, *[[batch]] * 3)
    assert looks == [1, 2, 6]


def test_a_replay_divides_by_the_targets_of_its_own_step():
    """The divisor of the first step must not be a part of the recording."""
    model = Averager()
    graphs, batch = graphs_of(model, CallAgain()), batch_of(8, 8)
    norms = []
    for targets in (1.0, 1.0, 4.0):
        graphs.begin()
        graphs.add(batch, targets, 1.0)
        norms.append(float(model.head.weight.grad.norm()))
    assert norms[1] == norms[0] and norms[2] == pytest.approx(norms[0] / 4)


def test_a_step_that_looks_at_a_number_is_not_recorded(tmp_path, recorders):
    """The stand-in refuses what a GPU would."""
    _, mapping = recorders

    def looking(logits, batch):
        return summed_loss(logits, batch) * float(logits.detach().sum() < 1e9)

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        run(Averager(), tmp_path, rows=40, epochs=2, loss_fn=looking, recorders=mapping)


def test_a_technique_that_begins_with_a_step_waits_for_one_that_is_not_skipped(tmp_path, recorders):
    pytest.importorskip("extensions.qat", reason="extensions/ is not here")
    made, mapping = recorders
    model = tiny_classifier()
    apply_extensions(model, load_extensions(["qat"]))

    def overflowing(logits, batch):  # in float16, until the scale has fallen
        return 10 * summed_loss(logits, batch)

    step = new_trainer(
        model, make_loader(whole_lengths(80), 4), overflowing, tmp_path,
        recorders=mapping, extensions=model.extensions, fp16=True,
    )  # fmt: skip
    step.train_epoch()
    assert step.progress.skipped > 1 and made[0].replayed > 0


# -- when a run is not recorded -----------------------------------------------------------------


class Acting(Extension):
    """Does something that cannot be recorded, as far as anybody knows."""


@pytest.mark.parametrize(
    "options, line",
    [
        ({"eager": True}, None),
        ({"extensions": [Acting()]}, "test_step_graph: no recorded steps with this extension"),
    ],
)
def test_a_run_that_cannot_or_shall_not_be_recorded_is_eager(tmp_path, recorders, options, line):
    made, mapping = recorders
    said = []
    run(Averager(), tmp_path, recorders=mapping, log=said.append, **options)
    assert made == []
    assert any(line in text for text in said) if line else len(said) == 1


def test_several_workers_and_a_network_that_is_compiled_for_many_shapes_run_eagerly():
    plain = FitOptions(epochs=1, lr=0.1, metric="dev")
    pair = Worker(torch.device("cpu"), world_size=2)
    assert may_record(plain, WORKER, [], print)
    assert not may_record(plain, pair, [], print)
    assert not may_record(replace(plain, compile="default"), WORKER, [], print)
    one_shape = replace(plain, compile="default", one_shape=True)
    assert may_record(one_shape, WORKER, [], print)
    assert not may_record(replace(one_shape, eager=True), WORKER, [], print)


def test_a_technique_that_an_earlier_run_left_in_the_model_counts_too(tmp_path, recorders):
    class Changing(Acting):
        def prepare_model(self, model) -> None:
            pass

    made, mapping = recorders
    model, said = Averager(), []
    apply_extensions(model, [Changing()])
    apply_extensions(model, [])
    run(model, tmp_path, recorders=mapping, log=said.append)
    assert made == [] and "test_step_graph: no recorded steps" in said[0]
    model = Averager()
    apply_extensions(model, [Acting()])  # it acted on that run's loss alone
    apply_extensions(model, [])
    run(model, tmp_path, recorders=mapping)
    assert len(made) == 1


def test_an_extension_that_says_that_it_can_be_recorded_is(tmp_path, recorders):
    class Modest(Extension):
        recordable = True

    made, mapping = recorders
    run(Averager(), tmp_path, recorders=mapping, extensions=[Modest()])
    assert len(made) == 1


def test_memory_that_runs_out_gives_the_recordings_up_and_then_takes_smaller_pieces(
    tmp_path, recorders
):
    _, mapping = recorders
    said, calls = [], []

    def short_of_memory(logits, batch):
        calls.append(len(logits))
        if len(calls) > 2 and len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return classifier.TASKS["sst"].loss_fn(logits, batch)

    model, plain = Averager(), Averager()
    how = {"rows": 40, "lr": 0.01}
    run(model, tmp_path / "a", recorders=mapping, loss_fn=short_of_memory, log=said.append, **how)
    run(plain, tmp_path / "b", **how)
    assert [line for line in said if "out of memory" in line] == [
        "out of memory: the recorded steps are given up, the run goes on eagerly",
        "out of memory: going on with 2 rows at a time, same batch size",
    ]
    for name, expected in weights(plain).items():
        torch.testing.assert_close(weights(model)[name], expected, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_still_names_its_step_and_rows(tmp_path, recorders):
    _, mapping = recorders
    model = Averager()
    with torch.no_grad():
        model.gpt.weight[examples(12).token_ids[5][0]] = math.nan
    with pytest.raises(InputError, match=r"step \d: the loss is nan; batch ids: .*row\d+"):
        run(model, tmp_path, recorders=mapping)


# -- the tasks ----------------------------------------------------------------------------------


FLAGS = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--lr", "1e-3"]
OWN = {
    "classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": ["--accumulate", "2", "--clip", "1"],
    "sonnet_generation": ["--max_new_tokens", "4"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model", dropout=0.1)
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_a_recorded_task_resumes_to_the_same_bits(task, place, monkeypatch, recorders):
    made, mapping = recorders
    monkeypatch.setitem(RECORDERS, "cpu", mapping["cpu"])
    words = [*FLAGS, *OWN[task], "--save_minutes", "0"]
    call_main(monkeypatch, task, *words, "--runs_dir", "whole")
    assert made[0].replayed > 0

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_after_save(patch, epoch=1, step=1)
        call_main(patch, task, *words, "--runs_dir", "cut")
    call_main(monkeypatch, task, *words, "--runs_dir", "cut", "--resume")
    assert_same_results("whole", "cut")
    made.clear()
    call_main(monkeypatch, task, *words, "--runs_dir", "eager", "--eager")
    assert made == []
