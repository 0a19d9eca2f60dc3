"""`GPT2Model.hidden_state_to_token` in models/gpt2.py."""

import torch
from helpers import CONFIG, same, seeded, shaped

from models.gpt2 import GPT2Model


def test_a_logit_is_a_dot_product_with_the_tokens_embedding():
    gpt = seeded(GPT2Model, CONFIG)
    with torch.no_grad():
        gpt.word_embedding.weight[7] = torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0])
    found = gpt.hidden_state_to_token(10 * torch.eye(8)[:3])
    shaped(found, (3, 11), "3 states, and the logits of 11 tokens for each.")
    same(
        found[:, 7],
        [30.0, 10, 0],
        "The embedding of token 7 begins with 3, 1, 0; three states have a 10 in one place each.",
    )


def test_it_works_at_every_position_at_once():
    gpt = seeded(GPT2Model, CONFIG)
    states = torch.randn(2, 5, 8)
    found = gpt.hidden_state_to_token(states)
    shaped(found, (2, 5, 11), "2 texts of 5 positions, and the logits of 11 tokens for each.")
    same(
        found[1, 4],
        gpt.hidden_state_to_token(states[1, 4]),
        "A position must not depend on others.",
    )


def test_the_weights_are_those_of_the_embedding():
    gpt = seeded(GPT2Model, CONFIG)
    count = sum(1 for _ in gpt.parameters())
    logits = gpt.hidden_state_to_token(torch.randn(8))
    logits.sum().backward()
    assert sum(1 for _ in gpt.parameters()) == count, "No new layer: the weights are tied."
    assert gpt.word_embedding.weight.grad is not None, (
        "The embedding gets no gradient from the logits: use word_embedding.weight itself."
    )
