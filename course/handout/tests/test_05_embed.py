"""`GPT2Model.embed` in models/gpt2.py."""

import pytest
import torch
from helpers import CONFIG, IDS, same, seeded, shaped

from models.gpt2 import GPT2Model


def model() -> GPT2Model:
    return seeded(GPT2Model, CONFIG).eval()


def test_a_token_gets_its_embedding_and_that_of_its_place():
    gpt = model()
    found = gpt.embed(IDS)
    shaped(found, (2, 5, 8), "Two texts of 5 tokens, and 8 numbers for each.")
    token, place = gpt.word_embedding.weight[IDS[1, 2]], gpt.pos_embedding.weight[2]
    same(
        found[1, 2],
        token + place,
        "The third token of a text has its own embedding plus that of "
        "position 2: positions count from 0.",
    )


def test_every_text_begins_at_position_0():
    gpt = model()
    same(gpt.embed(IDS)[0], gpt.embed(IDS[:1])[0], "A text must not depend on its batch.")


def test_positions_may_be_given():
    gpt = model()
    found = gpt.embed(IDS[:, 3:], torch.tensor([[3, 4], [3, 4]]))
    same(
        found,
        gpt.embed(IDS)[:, 3:],
        "Generation reads tokens one by one and gives their "
        "positions: use them where they are given.",
    )


def test_dropout_is_of_the_sum():
    gpt = model()
    gpt.embed_dropout.p = 1.0
    same(
        gpt.train().embed(IDS),
        torch.zeros(2, 5, 8),
        "A dropout of 1 in training leaves zeros: embed_dropout comes after the sum.",
    )


def test_a_text_that_is_too_long_is_refused():
    too_long = torch.zeros(1, CONFIG.max_position_embeddings + 1, dtype=torch.long)
    with pytest.raises((ValueError, NotImplementedError)) as error:
        model().embed(too_long)
    if error.type is NotImplementedError:
        raise error.value
    assert "7" in str(error.value) and "6" in str(error.value), (
        f"Say how many tokens there are, 7, and how many positions, 6; found {error.value}"
    )
