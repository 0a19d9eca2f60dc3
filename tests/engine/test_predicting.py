"""Evaluation in large batches: in pieces where memory runs out, with the same results in order."""

from functools import partial

import pytest
import torch
from tiny_run import summed_loss, tiny_classifier

from engine.batches import TokenDataset, forward_tokens, make_loader
from engine.frozen_features import FrozenFeatures, feature_loader, last_tokens
from engine.predicting import MOST_ROWS, outputs, predict, rows_at_once
from evaluation import cross_entropy

CPU = torch.device("cpu")
ROWS = 21


def loader(batch_size: int = 8):
    """Of rows whose lengths are in no order."""
    texts = [[1 + (3 * i + j) % 39 for j in range(1 + 5 * i % 12)] for i in range(ROWS)]
    labels = [i % 5 for i in range(ROWS)]
    return make_loader(TokenDataset(texts, [f"row{i}" for i in range(ROWS)], labels), batch_size)


@pytest.fixture
def model():
    return tiny_classifier(dropout=0.3)


@pytest.fixture
def memory(model):
    """`memory(3)`: room for three rows; returns the list of batches' sizes that were tried."""

    def room_for(rows: int, error=torch.OutOfMemoryError) -> list[int]:
        tried = []

        def check(module, inputs):
            tried.append(len(inputs[0]))
            if tried[-1] > rows:
                raise error("CUDA out of memory")

        model.gpt.register_forward_pre_hook(check)
        return tried

    return room_for


def test_gpus_read_more_rows_at_once_than_cpus():
    assert [rows_at_once(device, 8) for device in ("cpu", "cuda", "mps")] == [8, 256, 256]
    assert rows_at_once("cuda", 2 * MOST_ROWS) == 2 * MOST_ROWS


def test_where_memory_runs_out_predictions_are_the_same_and_in_the_file_s_order(model, memory):
    expected = predict(model, loader(), CPU)
    tried = memory(3)
    found = predict(model, loader(), CPU)
    assert found == expected and found.sent_ids == [f"row{i}" for i in range(ROWS)]
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]


def test_where_memory_runs_out_the_loss_is_the_same(model, memory):
    expected = cross_entropy(model, loader(), summed_loss, CPU)
    assert memory(3) == []
    assert cross_entropy(model, loader(), summed_loss, CPU) == pytest.approx(expected, rel=1e-6)


def test_where_memory_runs_out_features_are_the_same(model, memory):
    expected = FrozenFeatures(model, loader(), CPU).features
    memory(3)
    found = FrozenFeatures(model, loader(), CPU).features
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_one_row_that_is_too_large_and_other_errors_are_errors(model, memory):
    tried = memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        predict(model, loader(), CPU)
    assert tried == [8, 4, 2, 1]


def test_a_sharded_model_makes_the_same_calls_on_all_workers(model, memory, monkeypatch):
    monkeypatch.setattr(model.gpt.gpt_layers[0], "reshard", None, raising=False)
    tried = memory(3)
    with pytest.raises(torch.OutOfMemoryError):
        predict(model, loader(), CPU)
    assert tried == [8]


def test_an_error_of_another_kind_is_not_tried_again(model, memory):
    tried = memory(0, error=partial(RuntimeError, "sizes differ:"))
    with pytest.raises(RuntimeError, match="sizes differ"):
        predict(model, loader(), CPU)
    assert tried == [8]


def test_features_are_each_row_s_own_whatever_the_batches(model):
    """In the file's order, as the head's batches look them up."""
    rows = loader().dataset
    features = feature_loader(model, loader(), CPU).dataset.features
    for i, token_ids in enumerate(rows.token_ids):
        batch = {
            "token_ids": torch.tensor([token_ids]),
            "attention_mask": torch.ones(1, len(token_ids)),
        }
        with torch.no_grad():
            alone = last_tokens(model.eval(), batch)
        torch.testing.assert_close(features[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_nothing_is_kept_for_a_backward_pass_and_dropout_is_off(model):
    model.train()
    for _, logits in outputs(model, loader(), CPU, partial(forward_tokens, model)):
        assert not logits.requires_grad and not model.training
    assert torch.is_grad_enabled()
