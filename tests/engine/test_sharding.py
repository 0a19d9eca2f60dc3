"""Sharded workers train what copies train; each holds its share; the files are the same files."""

import json
from pathlib import Path

import pytest
import torch
from children import in_workers
from course_files import call_main, work_in, write_course, write_model
from pair_runs import RUNS, figures, flags_of
from slow import slow_unless
from tiny_run import TINY, examples, run_path, summed_loss, tiny_classifier, trainer
from torch.nn.parallel import DistributedDataParallel

from engine.batches import make_loader
from engine.checkpoint import load_tree
from engine.parallel import joined_worker
from engine.sharding import local, parts_of, whole_weights
from models.gpt2 import GPT2Model

ROWS = 41  # the last common batch of 8 has one row: the second worker gets none
USUAL = ["--clip", "0.5", "--schedule", "cosine", "--warmup", "0.2", "--weight_decay", "0.1"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=ROWS)
    write_model("model")  # without dropout, which differs from worker to worker
    return tmp_path


@pytest.fixture
def run_workers(monkeypatch):
    """Run a program's words in two workers."""

    def run(program: str, *words, count: int = 2) -> None:
        in_workers(lambda: call_main(monkeypatch, program, *words), count)

    return run


def stored(folder: str, file: str = "best") -> dict:
    return load_tree(run_path(folder, f"*/{file}.safetensors"))


def predictions() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("predictions").iterdir()}


def assert_same(one: dict, two: dict, atol: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=atol, rtol=0, msg=name)


# -- what is computed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless("paraphrase".__eq__, RUNS))
def test_two_sharded_workers_follow_the_single_process(name, place, monkeypatch, run_workers):
    """In losses, dev figures, weights and predictions; its checkpoint needs no --shard."""
    call_main(monkeypatch, *flags_of(name, 8), *USUAL, "--runs_dir", "single")
    alone = predictions()
    run_workers(*flags_of(name, 4), *USUAL, "--runs_dir", "pair", "--shard")
    for one, two in zip(figures(place / "single"), figures(place / "pair"), strict=True):
        assert two == pytest.approx(one | {"seconds": two["seconds"]}, abs=1e-5)
    assert_same(stored("single")["model"], stored("pair")["model"], atol=1e-5)
    assert predictions() == alone
    program, *words = flags_of(name, 8)
    best = run_path("pair", "*/best.safetensors")
    call_main(monkeypatch, program, *words, "--checkpoint", best)
    assert predictions() == alone


@pytest.mark.slow
def test_in_bfloat16_shares_and_copies_give_the_same_bits(place, monkeypatch, run_workers):
    monkeypatch.setattr("engine.machine_flags.has_bf16_units", lambda device: True)
    for folder, how in (("copies", []), ("shares", ["--shard"])):
        run_workers(*flags_of("sonnet", 4), "--bf16", "--runs_dir", folder, *how)
    assert_same(stored("copies")["model"], stored("shares")["model"], atol=0)


@pytest.mark.slow
def test_a_worker_may_have_no_share_of_a_small_tensor(place, monkeypatch, run_workers):
    """Three workers, two classes: the third one has nothing of the head."""
    flags = ["--dataset", "cfimdb", "--fine-tune-mode", "full-model", "--hidden_dropout_prob", "0"]
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "1", *flags]
    for folder, how in (("copies", []), ("shares", ["--shard"])):
        run_workers("classifier", *words, *USUAL, "--runs_dir", folder, *how, count=3)
    assert_same(stored("copies")["model"], stored("shares")["model"], atol=1e-5)


# -- files -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "first, second", [("", "--shard"), ("--shard", ""), ("--shard", "--shard")]
)
def test_a_run_goes_on_with_shares_or_copies_alike(first, second, place, run_workers):
    words = [*flags_of("sonnet", 4), *USUAL[:2]]  # a constant rate: more epochs may follow
    run_workers(*words, "--runs_dir", "whole")
    run_workers(*words, "--epochs", "1", "--runs_dir", "parts", *first.split())
    run_workers(*words, "--runs_dir", "parts", "--resume", *second.split())
    for file in ("best", "last"):
        whole, parts = stored("whole", file), stored("parts", file)
        assert_same(whole["model"], parts["model"], atol=1e-6)
    state, other = whole["optimizer"]["state"], parts["optimizer"]["state"]
    assert state.keys() == other.keys()
    for index in state:
        assert_same(state[index], other[index], atol=1e-6)


@pytest.mark.slow
def test_a_sharded_pretraining_writes_a_whole_model(place, monkeypatch, run_workers):
    words = ["--text", "data/sonnets.txt", "--vocab_size", "300", "--block", "16"]
    words += ["--steps", "2", "--eval_every", "1", "--eval_blocks", "2"]
    call_main(monkeypatch, "pretrain", *words, "--batch_size", "4", "--out", "single")
    run_workers("pretrain", *words, "--batch_size", "2", "--out", "pair", "--shard")
    one, two = (GPT2Model.from_pretrained(out).state_dict() for out in ("single", "pair"))
    assert_same(one, two, atol=1e-5)


# -- what is held ------------------------------------------------------------------------------


def bytes_held(run) -> int:
    """Of the memory under a worker's weights, gradients and moments, with what pads them."""
    tensors = [tensor for p in run.trained for tensor in (p, p.grad)]
    for state in run.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    storages = [local(tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_each_of_two_workers_holds_half(tmp_path):
    """After a step; a layer's whole weights are there in its own turn alone."""

    def hold():
        with joined_worker(use_gpu=False) as worker:
            model = tiny_classifier()
            whole = 4 * 4 * sum(p.numel() for p in model.parameters())  # 4 numbers of 4 bytes each
            share = {"rank": worker.rank, "workers": worker.world_size, "shuffle": True}
            loader = make_loader(examples(8), 4, **share)
            run = trainer(model, loader, summed_loss, tmp_path, worker, shard=True)
            [first, *_] = loader.groups(1)
            run.step(first)
            facts = {"whole": whole, "held": bytes_held(run), "parts": len(parts_of(model))}
            (tmp_path / f"{worker.rank}.json").write_text(json.dumps(facts), encoding="utf-8")

    in_workers(hold)
    held = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.json")]
    assert len(held) == 2
    for facts in held:
        assert facts["parts"] == 1 + TINY.num_hidden_layers
        assert 0.5 <= facts["held"] / facts["whole"] < 0.52


def test_with_whole_weights_a_worker_needs_no_other(tmp_path):
    """One worker alone goes forward, in the whole model and in its parts; then it is sharded."""

    def use():
        with joined_worker(use_gpu=False) as worker:
            model, expected = tiny_classifier(), tiny_classifier()
            tokens = torch.arange(12).view(2, 6)
            batch = tokens, torch.ones_like(tokens)
            model.eval()
            loader = make_loader(examples(8), 4)
            trainer(model, loader, summed_loss, tmp_path, worker, shard=True)
            with torch.no_grad(), whole_weights(model):
                if worker.is_main:
                    assert torch.equal(
                        model.gpt.word_embedding.weight, expected.gpt.word_embedding.weight
                    )
                    torch.testing.assert_close(model(*batch), expected.eval()(*batch))
            assert all(hasattr(p, "full_tensor") for p in model.parameters())

    in_workers(use)


def test_without_shard_a_worker_has_a_copy(tmp_path):
    def copy():
        with joined_worker(use_gpu=False) as worker:
            run = trainer(tiny_classifier(), make_loader(examples(8), 4), summed_loss, "r", worker)
            assert isinstance(run.gradients.objective.network, DistributedDataParallel)

    in_workers(copy)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workers, flags, said",
    [
        ("1", [], "--shard: one process, there is nobody to share with: start it by torchrun"),
        ("2", ["--compile"], "--shard: not with --compile"),
        ("2", ["--checkpoint", "best"], "--shard: not with --checkpoint (it trains nothing)"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_begins(
    workers, flags, said, place, monkeypatch, refused
):
    monkeypatch.setenv("WORLD_SIZE", workers)
    with refused(said):
        call_main(monkeypatch, *flags_of("sst", 4), "--shard", *flags)
    assert not list(place.glob("runs/*"))
