"""`GPT2SentimentClassifier.classify` in classifier.py."""

import torch
from helpers import same, seeded, settings

from classifier import GPT2SentimentClassifier


def classifier():
    options = settings(num_labels=3, hidden_dropout_prob=0.0, fine_tune_mode="full-model")
    return seeded(GPT2SentimentClassifier, options)


def test_the_head_is_linear_and_gives_logits():
    model = classifier().eval()
    with torch.no_grad():
        model.sentiment_head.weight.zero_()
        model.sentiment_head.weight[1, 0] = 3.0
        model.sentiment_head.bias.copy_(torch.tensor([0.0, 1, -1]))
    found = model.classify(torch.tensor([[2.0] * 8, [-2.0] * 8]))
    expected = [[0.0, 7, -1], [0.0, -5, -1]]
    same(
        found,
        expected,
        "classify is the linear layer, and nothing after it: no softmax, no activation.",
    )


def test_features_are_dropped_in_training():
    model, features = classifier(), torch.randn(4, 8)
    model.dropout.p = 1.0
    found = model.train().classify(features)
    same(
        found,
        model.sentiment_head.bias.expand(4, 3),
        "With a dropout of 1 only the bias is left: dropout comes before the linear layer.",
    )
