"""`GPT2SentimentClassifier.forward` in classifier.py."""

import torch
from helpers import IDS, MASK, different, same, seeded, settings, shaped

from classifier import GPT2SentimentClassifier


def classifier():
    options = settings(num_labels=3, hidden_dropout_prob=0.0, fine_tune_mode="full-model")
    return seeded(GPT2SentimentClassifier, options).eval()


def test_a_batch_gives_a_row_of_logits_for_each_text():
    found = classifier()(IDS, MASK)
    shaped(found, (2, 3), "2 texts, and the logits of 3 labels for each.")


def test_padding_changes_nothing():
    model = classifier()
    alone = model(IDS[:1, :3], MASK[:1, :3])
    same(
        model(IDS, MASK)[:1],
        alone,
        "The first text has 3 tokens and 2 of padding, and is "
        "classified otherwise than alone: read the state of the last real token, last_token.",
    )


def test_the_last_token_decides():
    model, other = classifier(), IDS.clone()
    other[0, 2] = 7
    different(
        model(other, MASK)[0],
        model(IDS, MASK)[0],
        "The last real token was changed, the logits were not.",
    )
    other = torch.where(MASK == 0, 7, IDS)
    same(model(other, MASK), model(IDS, MASK), "Padding was changed, and the logits with it.")
