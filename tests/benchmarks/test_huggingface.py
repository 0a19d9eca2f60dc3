"""transformers as a peer: the same logits as ours, all rows, and nothing left on disk."""

import os
from dataclasses import replace

import pytest
import torch

from benchmarks import huggingface
from benchmarks.huggingface import Transformers, TransformersBf16
from benchmarks.jobs import JOBS, Settings
from benchmarks.match import check_same_answers, check_same_work
from benchmarks.peers import Ours

needs_trainer = pytest.mark.skipif(
    not huggingface.has_trainer(), reason="Trainer needs the package accelerate"
)


@pytest.fixture(scope="module")
def settings(model_folder, data):
    return Settings(str(model_folder), str(data), batches=2, new_tokens=5)


@pytest.fixture
def make(settings):
    """Peers in this process, whose hooks are taken away afterwards."""
    made = []

    def make(peer, name, settings=settings):
        made.append(peer(JOBS[name], settings))
        return made[-1]

    yield make
    for peer in made:
        peer.meter.close()


@needs_trainer
@pytest.mark.parametrize("name", ["sst-8", "paraphrase-64", "head", "sonnets-8", "evaluate"])
def test_trainer_does_all_of_the_job(name, make):
    peer = make(Transformers, name)
    peer.answer()
    for turn in (peer.run(), peer.run()):
        check_same_work("transformers", turn, peer.load.expected())
    assert os.listdir(peer.scratch.name) == []


def test_generate_writes_every_token(make):
    peer = make(Transformers, "decode")
    peer.answer()
    check_same_work("transformers", peer.run(), peer.load.expected())


@pytest.mark.parametrize("name", ["sst-8", "paraphrase-64", "sonnets-8"])
def test_its_logits_are_ours(name, make):
    answers = {"ours": make(Ours, name).answer(), "transformers": make(Transformers, name).answer()}
    assert check_same_answers(answers, 1e-4)["transformers"] < 1e-5


@needs_trainer
def test_trainer_has_its_defaults_and_writes_and_reports_nothing(make):
    peer = make(Transformers, "sst-8")
    trainer = peer.trainer(peer.load.rows, rate=1e-5)
    assert trainer.args.save_strategy == "no" and trainer.args.report_to == []
    assert not trainer.args.bf16 and trainer.args.max_grad_norm == 1.0
    assert "fused" in trainer.args.optim and trainer.args.per_device_train_batch_size == 8
    assert trainer.args.device.type == "cpu"


@needs_trainer
def test_the_bfloat16_peer_trains_in_bfloat16(make, settings):
    peer = make(TransformersBf16, "sst-8", replace(settings, bf16=True))
    seen = []
    peer.model.transformer.h[0].mlp.c_fc.register_forward_hook(
        lambda module, inputs, output: seen.append(str(output.dtype))
    )
    check_same_work("transformers-bf16", peer.run(), peer.load.expected())
    assert set(seen) == {"torch.bfloat16"}
    assert TransformersBf16.precision(JOBS["sst-8"], settings) == "bfloat16"


def test_without_accelerate_the_peer_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(huggingface, "has_trainer", lambda: False)
    assert "accelerate" in Transformers.missing(JOBS["sst-8"])
    assert Transformers.missing(JOBS["decode"]) is None


def test_padding_does_not_change_its_logits(make):
    peer = make(Transformers, "sst-8")
    tokenizer = peer.load.tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(5)  # batches are padded with token 0
    peer.model.config.pad_token_id = 5
    peer.model.eval()
    padded = {"token_ids": [[7, 8, 9], [11, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    alone = {"token_ids": [[11]], "attention_mask": [[1]]}
    of_padded, of_alone = (
        peer.logits({name: torch.tensor(value) for name, value in batch.items()})[-1]
        for batch in (padded, alone)
    )
    torch.testing.assert_close(of_padded, of_alone, rtol=1e-5, atol=1e-5)
