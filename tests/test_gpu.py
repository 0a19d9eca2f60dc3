"""On a CUDA GPU: the same model, the three tasks, recorded steps, 16 bits, memory that runs out."""

import gc
import json
from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from course_files import call_main, predicted, work_in, write_course, write_model
from technique_cases import those_whose
from tiny_run import TINY, interrupt_after_save, run_path, same_bits, tiny_classifier
from tiny_run import trainer as new_trainer
from torch.nn import functional as F

import classifier
from engine.batches import TokenDataset, make_loader
from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.extension import Extension
from engine.fast.chunked_loss import linear_cross_entropy
from engine.fast.gpt2 import accelerate
from engine.generation import generate
from engine.host_copies import HostCopies
from engine.parallel import Worker
from engine.predicting import predict
from engine.recorder import RECORDERS
from engine.trainer import Trainer
from evaluation import cross_entropy
from models.gpt2 import GPT2Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
TASKS = ["classifier", "paraphrase_detection", "sonnet_generation"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model")
    return tmp_path


def run(monkeypatch, task: str, *extra) -> dict:
    """The weights of the best epoch of a short run on the GPU."""
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--use_gpu"]
    words += {"classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"]}.get(task, [])
    words += ["--max_new_tokens", "4"] if task == "sonnet_generation" else []
    call_main(monkeypatch, task, *words, *extra)
    folder = extra[extra.index("--runs_dir") + 1] if "--runs_dir" in extra else "runs"
    return load_tree(run_path(folder, "*/best.safetensors"))["model"]


@torch.no_grad()
def test_hidden_states_are_the_cpu_s(place):
    tokens = torch.randint(300, (3, 20))
    mask = torch.tensor([[1] * 20, [1] * 12 + [0] * 8, [1] * 5 + [0] * 15])
    expected = GPT2Model.from_pretrained("model")(tokens, mask)["last_hidden_state"]
    lesson, fast = (SimpleNamespace(gpt=GPT2Model.from_pretrained("model")) for _ in range(2))
    accelerate(fast)
    for model in (lesson.gpt, fast.gpt):
        found = model.cuda()(tokens.cuda(), mask.cuda())["last_hidden_state"].cpu()
        real = mask.bool()
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("extra", [[], ["--bf16"], ["--fp16"], ["--fp16", "--eager"]])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_on_the_gpu_and_its_checkpoint_on_the_cpu(task, extra, place, monkeypatch):
    weights = run(monkeypatch, task, *extra)
    assert all(tensor.device.type == "cpu" for tensor in weights.values())
    assert all(tensor.isfinite().all() for tensor in weights.values())
    outputs = {path.name: path.read_bytes() for path in (place / "predictions").iterdir()}
    best = run_path("runs", "*/best.safetensors")
    words = ["--data_dir", "data", "--checkpoint", best]
    words += ["--dataset", "sst"] if task == "classifier" else []
    call_main(monkeypatch, task, *words)
    if task != "sonnet_generation":  # its draws come from the device's own generator
        for name in outputs:
            found = predicted(place / "predictions" / name)
            assert found.keys() == {
                line.split(", ")[0] for line in outputs[name].decode().splitlines()[1:]
            }


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_16_bits_follow_float32(precision, place, monkeypatch):
    full = run(monkeypatch, "classifier", "--runs_dir", "full", "--hidden_dropout_prob", "0")
    half = run(
        monkeypatch, "classifier", "--runs_dir", "half", "--hidden_dropout_prob", "0", precision
    )
    for name in full:
        torch.testing.assert_close(half[name], full[name], atol=1e-3, rtol=0.05)


@pytest.mark.parametrize(
    "extra", [[], ["--accumulate", "2"], ["--clip", "0.1"], ["--tf32"], ["--fp16"]]
)
@pytest.mark.parametrize("task", TASKS)
def test_recorded_steps_follow_the_eager_ones(task, extra, place, monkeypatch):
    """Gradients that a replay lost or kept too long would lead elsewhere."""
    dropout = ["--hidden_dropout_prob", "0"] if task == "classifier" else []
    flags = [*dropout, *extra, "--epochs", "4"]
    eager = run(monkeypatch, task, *flags, "--runs_dir", "eager", "--eager")
    recorded = run(monkeypatch, task, *flags, "--runs_dir", "recorded")
    tolerance = (
        {"atol": 1e-3, "rtol": 0.05}
        if extra in (["--tf32"], ["--fp16"])
        else {"atol": 1e-4, "rtol": 0.01}
    )
    for name in eager:
        torch.testing.assert_close(recorded[name], eager[name], **tolerance, msg=name)
    start = GPT2Model.from_pretrained("model").state_dict()
    assert [n for n in start if not torch.equal(eager.get(f"gpt.{n}", start[n]), start[n])]


@pytest.mark.parametrize("task", TASKS)
def test_a_compiled_network_follows_the_plain_one(task, place, monkeypatch):
    dropout = ["--hidden_dropout_prob", "0"] if task == "classifier" else []
    plain = run(monkeypatch, task, *dropout, "--runs_dir", "plain", "--eager")
    quick = run(monkeypatch, task, *dropout, "--runs_dir", "quick", "--compile")
    for name in plain:
        torch.testing.assert_close(quick[name], plain[name], atol=1e-3, rtol=0.05)


@pytest.mark.parametrize("name", those_whose(attrgetter("recordable")))
def test_a_technique_that_says_that_it_can_be_recorded_learns_what_it_does_eagerly(
    name, place, monkeypatch, capsys
):
    flags = ["--hidden_dropout_prob", "0", "--extension", name, "--epochs", "4"]
    eager = run(monkeypatch, "classifier", *flags, "--runs_dir", "eager", "--eager")
    recorded = run(monkeypatch, "classifier", *flags, "--runs_dir", "recorded")
    assert "run eagerly" not in capsys.readouterr().out
    close = {"atol": 2e-3, "rtol": 0.05} if name == "qat" else {"atol": 1e-4, "rtol": 0.01}
    for key in eager:
        if "extremes" not in key:  # of padding, too, of which recorded batches have more
            torch.testing.assert_close(recorded[key], eager[key], **close, msg=key)


@pytest.mark.parametrize("name", ["kfac", "rdrop", "smart", "gradient_checkpointing"])
def test_a_technique_that_cannot_be_recorded_runs_eagerly_and_says_so(
    name, place, monkeypatch, capsys
):
    run(monkeypatch, "classifier", "--extension", name)
    said = capsys.readouterr().out
    assert said.count(f"{name}: no recorded steps with this extension, they run eagerly") == 1


def test_a_step_that_looks_at_a_number_is_refused_in_one_line(tmp_path):
    class Looking(Extension):
        recordable = True

        def penalty(self, model, batch, logits):
            return float(logits.sum()) * 0.0

    run = recorded_run(tmp_path, 0.0, extensions=[Looking()])
    batch = next(run.loader.batches())
    run.step([batch])
    with pytest.raises(InputError, match=r"cannot be recorded as a CUDA graph .* give --eager"):
        run.step([batch])


def recorded_run(tmp_path, dropout: float, **options):
    """A trainer of a tiny classifier on the GPU, on rows of one shape."""
    worker = Worker(torch.device("cuda"))
    rows = TokenDataset(
        [[1 + i % 9] * 8 for i in range(256)], ["x"] * 256, [i % 5 for i in range(256)]
    )
    loader = make_loader(rows, 4)
    model = tiny_classifier(dropout).cuda()
    return new_trainer(
        model,
        loader,
        classifier.TASKS["sst"].loss_fn,
        tmp_path,
        worker,
        recorders=RECORDERS,
        **options,
    )


def test_dropout_draws_anew_in_each_replay_and_follows_the_seed(tmp_path):
    run = recorded_run(tmp_path, 0.5, lr=0.0)
    batch = next(run.loader.batches())
    ends = []
    for seed in (1, 1, 2):
        torch.cuda.manual_seed(seed)
        ends.append([float(run.gradients.of([batch])[1][0]) for _ in range(6)])
    assert len(run.gradients.graphs.recordings) == 1
    assert len(set(ends[0])) == 6 and ends[0] == ends[1] != ends[2]


def test_a_recorded_step_reads_the_loss_scale_of_the_moment(tmp_path):
    """Replayed with another scale, it gives other gradients, the same ones once unscaled."""
    run = recorded_run(tmp_path, 0.0, lr=0.0, fp16=True)
    batch, raw, unscaled = next(run.loader.batches()), [], []
    for scale in (2.0**8, 2.0**8, 2.0**8, 2.0**12):
        run.scaler.update(new_scale=scale)
        run.gradients.of([batch])
        raw.append(run.model.gpt.word_embedding.weight.grad.norm().item())
        run.scaler.unscale_(run.optimizer)
        unscaled.append(run.model.gpt.word_embedding.weight.grad.norm().item())
        assert run.scaler.try_step(run.optimizer)
    assert len(run.gradients.graphs.recordings) == 1
    assert raw == pytest.approx([raw[0]] * 3 + [16 * raw[0]], rel=0.01)
    assert unscaled == pytest.approx([unscaled[0]] * 4, rel=0.01)


def test_a_step_that_overflows_moves_nothing_recorded_or_not(tmp_path):
    run = recorded_run(tmp_path, 0.0, lr=0.1, fp16=True)
    batch = next(run.loader.batches())
    for _ in range(8):  # until steps are made, and replayed
        run.step([batch])
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    skipped = run.progress.skipped
    run.scaler.update(new_scale=2.0**60)
    run.step([batch])
    assert run.progress.skipped == skipped + 1 and run.scaler.get_scale() == 2.0**59
    assert same_bits(before, dict(run.model.named_parameters()))


@pytest.mark.parametrize("name", ["kfac", "muon", "rdrop", "smart"])
def test_a_technique_trains_in_float16(name, place, monkeypatch):
    weights = run(monkeypatch, "classifier", "--extension", name, "--fp16")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_recorded_step_is_one_launch_where_an_eager_one_is_hundreds(tmp_path):
    counts = {}
    for eager in (False, True):
        run = recorded_run(tmp_path, 0.1, eager=eager)
        for batch in run.loader.batches(first=60):
            run.step([batch])
        with torch.profiler.profile() as profile:
            run.step([next(run.loader.batches())])
            torch.cuda.synchronize()
        launches = {event.key: event.count for event in profile.key_averages()}
        counts[eager] = launches.get("cudaLaunchKernel", 0), launches.get("cudaGraphLaunch", 0)
    assert counts[False][1] == 1 and counts[True][1] == 0
    assert counts[False][0] < 40 < counts[True][0] / 2


@pytest.mark.parametrize("extra", [[], ["--eager"]])
@pytest.mark.parametrize("task", TASKS)
def test_no_step_of_training_waits_for_the_gpu(task, extra, place, monkeypatch):
    """After the first epochs, in which kernels are tried and steps recorded."""
    steps = []

    def watched(trainer, group, step=Trainer.step):
        if trainer.progress.epoch >= 3:
            torch.cuda.set_sync_debug_mode("error")
            steps.append(1)
        step(trainer, group)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "step", watched)
    run(monkeypatch, task, "--bf16", "--epochs", "4", *extra)
    assert steps


@pytest.mark.parametrize(
    "extra", [[], ["--eager"], ["--bf16", "--accumulate", "2"], ["--fp16"], ["--fp16", "--eager"]]
)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_on_the_gpu_resumes_to_the_same_bits(task, extra, place, monkeypatch, capsys):
    """Whatever was recorded when: the resumed run begins without recordings, mid-epoch."""
    write_model("model", dropout=0.1)
    words = ["--epochs", "3", "--save_minutes", "0", "--batch_size", "4", *extra]

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_after_save(patch, epoch=1, step=1)
        run(patch, task, *words, "--runs_dir", "cut")
    cut = run(monkeypatch, task, *words, "--runs_dir", "cut", "--resume")
    assert "resumed at epoch 1, step 1" in capsys.readouterr().out
    whole = run(monkeypatch, task, *words, "--runs_dir", "whole")
    lines = [run_path(f, "*/metrics.jsonl").read_text("utf-8") for f in ("whole", "cut")]
    figures = [[{**json.loads(x), "seconds": 0} for x in text.splitlines()] for text in lines]
    assert figures[0] == figures[1] and same_bits(whole, cut)


def test_a_copy_for_the_writing_thread_is_queued_into_the_memory_of_the_one_before():
    copies, tensor = HostCopies(), torch.zeros(1 << 22, device="cuda")
    first, arrived = copies.of({"a": tensor})
    arrived()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor.add_(1)
        copy, arrived = copies.of({"a": tensor})
        tensor.add_(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    arrived()
    assert copy["a"].is_pinned() and copy["a"].data_ptr() == first["a"].data_ptr()
    assert copy["a"].eq(1).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_chunked_loss_holds_one_chunk_of_logits(autocast):
    hidden = torch.randn(8192, 64, device="cuda", requires_grad=True)
    weight = torch.randn(50_257, 64, device="cuda", requires_grad=True)
    labels = torch.randint(50_257, (8192,), device="cuda")
    ends, peaks = [], []
    for way in (chunked, whole):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = way(hidden, weight, labels)
        ends.append([loss, *torch.autograd.grad(loss / 8192, (hidden, weight))])
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < 0.75 * peaks[1]
    for one, other in zip(*ends, strict=True):
        assert (one - other).norm() < (2e-2 if autocast else 1e-4) * other.norm()


def chunked(hidden, weight, labels):
    return linear_cross_entropy(hidden, weight, labels, 1024).loss


def whole(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")


def test_memory_that_runs_out_is_answered_by_smaller_pieces(place, monkeypatch, capsys):
    write_model("model", hidden_size=512, num_hidden_layers=8)
    flags = ["--batch_size", "40", "--hidden_dropout_prob", "0"]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run(monkeypatch, "classifier", *flags, "--runs_dir", "whole")
    peak = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.9 * peak / total)
    try:
        run(monkeypatch, "classifier", *flags, "--runs_dir", "pieces")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "same batch size" in capsys.readouterr().out


def test_an_evaluation_that_runs_out_of_memory_goes_on_in_pieces():
    """Activations of 256 rows of 512 tokens take far more than the weights."""
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    shape |= {"max_position_embeddings": 512, "num_hidden_layers": 2}
    settings = SimpleNamespace(pretrained=False, gpt_config=vars(TINY) | shape)
    settings.num_labels, settings.hidden_dropout_prob = 5, 0.0
    settings.fine_tune_mode = "full-model"
    torch.manual_seed(0)
    model = classifier.GPT2SentimentClassifier(settings).cuda()
    texts = [[1 + (i + j) % 39 for j in range(512)] for i in range(256)]
    rows = TokenDataset(texts, [f"row{i}" for i in range(256)], [i % 5 for i in range(256)])
    loader, device = make_loader(rows, 256), torch.device("cuda")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loss_fn = classifier.TASKS["sst"].loss_fn
    expected = cross_entropy(model, loader, loss_fn, device)
    peak = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    read = []
    model.register_forward_hook(lambda module, inputs, _: read.append(len(inputs[0])))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
    try:
        found = cross_entropy(model, loader, loss_fn, device)
        predictions = predict(model, loader, device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert max(read) < 256 and sum(read) == 2 * 256
    assert found == pytest.approx(expected, rel=1e-4)
    assert predictions.sent_ids == rows.sent_ids


@pytest.mark.parametrize("sampled", [{"temperature": 0}, {"temperature": 1.2, "top_p": 0.9}])
def test_replayed_decoding_writes_the_same_text(sampled, place):
    model = GPT2Model.from_pretrained("model").eval().cuda()
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5]).cuda()
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0)).cuda()
    plain, replayed = (
        generate(
            model,
            tokens,
            mask,
            max_new_tokens=40,
            record=record,
            generator=torch.Generator("cuda").manual_seed(1),
            **sampled,
        )
        for record in (False, True)
    )
    assert [row.tolist() for row in replayed] == [row.tolist() for row in plain]
