"""`SonnetGPT.forward` in sonnet_generation.py."""

import torch
from helpers import IDS, MASK, same, seeded, settings, shaped

from sonnet_generation import SonnetGPT


def model():
    return seeded(SonnetGPT, settings(model_size="gpt2-mini")).eval()  # of it, the tokenizer alone


def test_every_position_predicts_a_token():
    found = model()(IDS, MASK)
    shaped(found, (2, 5, 11), "2 texts of 5 positions, and the logits of 11 tokens for each.")


def test_the_logits_come_from_the_last_hidden_states():
    poet = model()
    end = poet.gpt(IDS, MASK)["last_token"][1]
    same(
        poet(IDS, MASK)[1, 4],
        poet.gpt.hidden_state_to_token(end),
        "The logits after the last token are hidden_state_to_token of its state.",
    )


def test_no_position_knows_its_answer():
    poet, other = model(), IDS.clone()
    other[:, 3:] = 0
    same(
        poet(other, MASK)[:, :3],
        poet(IDS, MASK)[:, :3],
        "Tokens 3 and 4 changed, and so did "
        "what positions 0 to 2 predict: they would learn to copy.",
    )
    assert torch.isfinite(poet(IDS, MASK)).all()
