"""A batch in one block of bytes: the same tensors, texts padded to few lengths."""

import math

import pytest
import torch
from tiny_run import TINY, Averager, tiny_classifier

from engine.batches import IGNORED_LABEL
from engine.packing import layout_of, pack, rounded
from engine.recorded_gradients import most_positions


def test_lengths_are_rounded_to_8_and_from_64_on_to_32_within_the_model_s_positions():
    assert [rounded(t, 1024) for t in (1, 8, 9, 64, 65, 96, 97)] == [8, 8, 16, 64, 96, 96, 128]
    assert [rounded(t, 50) for t in (47, 49, 50)] == [48, 50, 50]
    assert most_positions(tiny_classifier()) == TINY.max_position_embeddings
    assert most_positions(Averager()) == math.inf


def test_a_block_holds_the_batch_padded_on_the_right():
    batch = {
        "token_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "labels": torch.tensor([[6, 7, IGNORED_LABEL], [IGNORED_LABEL] * 3]),
        "reference": torch.tensor([[0.5, -0.25], [1.0, 2.0]]),
    }
    layout = layout_of(batch, math.inf)
    views = layout.views(pack(batch, layout, pinned=False))
    assert views["token_ids"].tolist() == [[5, 6, 7, *[0] * 5], [8, *[0] * 7]]
    assert views["attention_mask"].sum().item() == 4 and views["attention_mask"].shape == (2, 8)
    assert views["labels"][0].tolist() == [6, 7, *[IGNORED_LABEL] * 6]
    assert torch.equal(views["reference"], batch["reference"])
    assert layout == layout_of({**batch, "token_ids": batch["token_ids"] + 1}, math.inf)
    with pytest.raises(ValueError, match="padded on the right"):
        pack({**batch, "attention_mask": batch["attention_mask"].flip(1)}, layout, pinned=False)


def test_what_is_no_text_is_not_padded():
    batch = {"features": torch.ones(2, 3), "labels": torch.tensor([0, 1])}
    layout = layout_of(batch, math.inf)
    assert layout.views(pack(batch, layout, pinned=False))["features"].shape == (2, 3)
