"""A training step queues its work on a GPU and waits for nothing there.

Stood in for by the meta device, where every operation has a shape and no number can be read.
"""

from types import SimpleNamespace

import pytest
import torch
from course_files import WORKER
from recorder import CallAgain
from tiny_run import TINY, tiny_classifier, trainer

import classifier
import paraphrase_detection
import pretrain
from engine.batches import TokenDataset, forward_tokens, make_loader, next_token_labels
from engine.frozen_features import FrozenFeatures
from engine.parallel import Worker
from engine.predicting import predict
from engine.trainer import Trainer
from evaluation import cross_entropy

SST, PARAPHRASE = classifier.TASKS["sst"], paraphrase_detection.TASK
META = Worker(torch.device("meta"))
ROWS = 12


def model_of(task):
    if task is SST:
        return tiny_classifier(dropout=0.3)
    settings = SimpleNamespace(pretrained=False, gpt_config=vars(TINY))
    if task is PARAPHRASE:
        settings.answer_tokens = [7, 11]
        return paraphrase_detection.ParaphraseGPT(settings)
    return pretrain.LanguageModel(settings)


def loader_of(task):
    texts = [list(range(1, 3 + i % 6)) for i in range(ROWS)]
    labels = [next_token_labels(ids) if task is pretrain else i % 2 for i, ids in enumerate(texts)]
    return make_loader(TokenDataset(texts, [f"row{i}" for i in range(ROWS)], labels), 2)


def forward_of(task):
    return pretrain.forward_blocks if task is pretrain else forward_tokens


def run_of(task, tmp_path, **options) -> Trainer:
    model = model_of(task).to("meta")
    options |= {"forward": forward_of(task)}
    return trainer(model, loader_of(task), task.loss_fn, tmp_path, META, **options)


@pytest.mark.parametrize("task", [SST, PARAPHRASE, pretrain])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_steps_of_an_epoch_are_queued_without_a_look_at_any_number(
    task, accumulate, recorded, tmp_path, monkeypatch
):
    looks, recorder = [], CallAgain()
    monkeypatch.setattr("engine.trainer.STEPS_UNREAD", {"meta": 4})
    monkeypatch.setattr(Trainer, "look_at_losses", lambda run: looks.append(len(run.unread)))
    recorders = {"meta": lambda device: recorder} if recorded else {}
    run = run_of(task, tmp_path, clip=1.0, accumulate=accumulate, recorders=recorders)
    run.train_epoch()
    assert (recorder.replayed > 0) == recorded
    steps = ROWS // 2 // accumulate
    assert run.progress.step == steps == len(run.unread)
    assert looks == [*range(4, steps + 1), steps]


def test_a_step_that_looks_is_found(tmp_path, monkeypatch):
    """The stand-in sees what it is there for."""
    monkeypatch.setattr("engine.gradients.count_correct", lambda logits, batch: float(logits.sum()))
    with pytest.raises(RuntimeError, match="meta"):
        run_of(SST, tmp_path).train_epoch()


@pytest.mark.parametrize("figure", ["classes", "loss", "features"])
def test_an_evaluation_looks_once_after_all_batches(figure, monkeypatch):
    model, loader = model_of(SST).to("meta"), loader_of(SST)
    batches = []
    read = model.gpt if figure == "features" else model
    read.register_forward_hook(lambda *_: batches.append(1))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        if figure == "classes":
            predict(model, loader, META.device)
        elif figure == "features":
            FrozenFeatures(model, loader, META.device)
        else:
            cross_entropy(model, loader, SST.loss_fn, META.device)
    assert len(batches) == len(loader)
    assert len(predict(model_of(SST), loader, WORKER.device).predicted) == ROWS
