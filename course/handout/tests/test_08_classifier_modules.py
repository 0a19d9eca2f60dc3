"""`GPT2SentimentClassifier.__init__` in classifier.py."""

import pytest
import torch
from helpers import seeded, settings
from torch import nn

from classifier import GPT2SentimentClassifier


def classifier(mode: str = "full-model"):
    options = settings(num_labels=3, hidden_dropout_prob=0.25, fine_tune_mode=mode)
    return seeded(GPT2SentimentClassifier, options)


def test_it_has_one_linear_layer_from_gpt2_to_the_labels():
    head = classifier().sentiment_head
    assert isinstance(head, nn.Linear), f"sentiment_head is {head}, expected an nn.Linear."
    shape = tuple(head.weight.shape)
    assert shape == (3, 8), f"From 8 numbers to 3 labels the weight is (3, 8), found {shape}."


def test_it_has_the_dropout_that_was_asked_for():
    assert classifier().dropout.p == 0.25, "The probability is config.hidden_dropout_prob."


@pytest.mark.parametrize("mode", ["full-model", "last-linear-layer"])
def test_the_new_layer_is_trained_in_both_modes(mode):
    model = classifier(mode)
    assert all(p.requires_grad for p in model.sentiment_head.parameters())
    trained = any(p.requires_grad for p in model.gpt.parameters())
    assert trained == (mode == "full-model"), "last-linear-layer freezes GPT-2, full-model does not"
    assert torch.isfinite(model.sentiment_head.weight).all()
