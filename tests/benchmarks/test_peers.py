"""Peers do the same work: the same logits, as many rows and steps; one that does less is seen."""

import pytest
import torch

from benchmarks import starter
from benchmarks.jobs import JOBS, Settings
from benchmarks.match import PEERS, check_same_answers, check_same_work
from benchmarks.peers import Ours, Starter, TorchFused
from engine.errors import InputError

STEPPERS = {"starter": Starter, "torch-fused": TorchFused, "ours": Ours}


@pytest.fixture(scope="module")
def settings(model_folder, data):
    return Settings(str(model_folder), str(data), batches=2, new_tokens=5)


@pytest.fixture
def make(settings):
    """Peers in this process, whose hooks are taken away afterwards."""
    made = []

    def make(peer, name):
        made.append(peer(JOBS[name], settings))
        return made[-1]

    yield make
    for peer in made:
        peer.meter.close()


@pytest.mark.parametrize("name", [name for name in JOBS if name not in ("start", "step")])
def test_the_starter_and_ours_do_every_job_alike(name, make):
    answers = {}
    for who in ("starter", "ours"):
        peer = make(PEERS[who], name)
        answers[who] = peer.answer()
        turn = peer.run()
        check_same_work(who, turn, peer.load.expected())
        assert turn["seconds"] > 0 and peer.peak_mb() > 50
        peer.meter.close()
    assert check_same_answers(answers, 1e-4)["starter"] < 1e-4


@pytest.mark.parametrize("name", ["sst-8", "paraphrase-64", "sonnets-8"])
def test_inputs_of_recorded_steps_are_counted_too(name, make, monkeypatch):
    """Compiled in earnest, but for the last step, by which it would be made into kernels."""
    calls = []

    def compiled(model, mode, **how):
        calls.append(mode)
        return torch.compile(model, dynamic=True, backend="eager")

    monkeypatch.setattr("engine.trainer.compiled", compiled)
    plain, fast = make(PEERS["ours"], name), make(PEERS["ours-compiled"], name)
    assert check_same_answers({"ours": plain.answer(), "fast": fast.answer()}, 1e-6)["fast"] < 1e-6
    turns = []
    for peer, mode in ((plain, None), (fast, "default")):
        turns.append(peer.run())
        check_same_work("it", turns[-1], peer.load.expected())
        assert calls == [mode]
        calls.clear()
    assert turns[0]["positions"] == turns[1]["positions"]


def test_a_turn_to_warm_up_is_one_batch(make):
    peer = make(Ours, "sst-8")
    assert {key: peer.run(warm=True)[key] for key in ("rows", "steps")} == {"rows": 8, "steps": 1}
    assert peer.run()["rows"] == 16


def test_ours_pads_less(make):
    positions = {}
    for who in ("starter", "ours"):
        peer = make(PEERS[who], "sst-8")
        positions[who] = peer.run()["positions"]
        peer.meter.close()
    assert positions["ours"] < positions["starter"]


def test_all_optimizers_take_the_same_step(make):
    answers = {}
    for who, peer in STEPPERS.items():
        peer = make(peer, "step")
        answers[who] = peer.answer()
        check_same_work(who, peer.run(), {"steps": 2})
        peer.meter.close()
    assert max(check_same_answers(answers, 1e-6).values()) < 1e-6


def test_an_optimizer_that_does_nothing_is_seen(make, monkeypatch):
    answers = {"ours": make(Ours, "step").answer()}
    monkeypatch.setattr("benchmarks.starter.StarterAdamW.step", lambda self: None)
    answers["starter"] = make(Starter, "step").answer()
    with pytest.raises(InputError, match="starter computes something else than ours"):
        check_same_answers(answers, 1e-6)


def skip_a_batch(model, loader, optimizer):
    for batch in list(loader)[1:]:
        starter.train_step(model, batch, optimizer)


def skip_a_step(model, loader, optimizer):
    model.train()
    for i, batch in enumerate(loader):
        model.loss(batch).backward()
        if i:
            optimizer.step()


@pytest.mark.parametrize(
    "train_epoch, wrong",
    [(skip_a_batch, "8 rows, expected 16, 1 steps, expected 2"), (skip_a_step, "1 steps")],
)
def test_a_peer_that_trains_less_is_seen(train_epoch, wrong, make, monkeypatch):
    monkeypatch.setattr("benchmarks.starter.train_epoch", train_epoch)
    peer = make(Starter, "sst-8")
    peer.model.train()
    with pytest.raises(InputError, match=wrong):
        check_same_work("starter", peer.run(), peer.load.expected())


def test_a_peer_that_writes_fewer_tokens_is_seen(make):
    peer = make(Ours, "decode")
    peer.flags = peer.flags.replace(max_new_tokens=4)
    with pytest.raises(InputError, match="12 rows, expected 15"):
        check_same_work("ours", peer.run(), peer.load.expected())


def test_memory_that_sufficed_for_pieces_only_did_not_suffice(make, monkeypatch):
    peer = make(Ours, "sst-8")
    monkeypatch.setattr(
        "engine.trainer.Trainer.train_epoch", lambda run: setattr(run.gradients, "micro_batch", 4)
    )
    with pytest.raises(torch.OutOfMemoryError, match="4 rows at a time"):
        peer.run()


def test_a_model_without_a_layer_is_seen(make):
    ours, other = make(Ours, "sst-8"), make(Starter, "sst-8")
    other.model.gpt.gpt_layers = torch.nn.ModuleList(other.model.gpt.gpt_layers[:1])
    with pytest.raises(InputError, match="starter computes something else"):
        check_same_answers({"ours": ours.answer(), "starter": other.answer()}, 1e-3)


def test_bfloat16_is_ours_in_training_only(settings):
    bf16 = Settings("x", bf16=True)
    assert Ours.precision(JOBS["sst-8"], bf16) == "bfloat16"
    assert Ours.precision(JOBS["evaluate"], bf16) == "float32"
    assert Starter.precision(JOBS["sst-8"], bf16) == "float32"
    assert PEERS["transformers"].precision(JOBS["sst-8"], bf16) == "float32"
