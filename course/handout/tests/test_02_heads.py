"""`CausalSelfAttention.attention` in modules/attention.py."""

import torch
from helpers import CONFIG, same, seeded

from modules.attention import CausalSelfAttention


def attended(training: bool = False, **changed):
    """The module's output, and what it called `attend` with, which gives back the values."""
    module = seeded(CausalSelfAttention, CONFIG).train(training)
    module.dropout.p = 0.25
    calls = []

    def attend(query, key, value, padding_mask, dropout):
        calls.append((query, key, value, padding_mask, dropout))
        return value

    module.attend = attend
    query, key, value = (torch.randn(1, 2, 3, 4) for _ in range(3))
    mask = torch.zeros(1, 1, 1, 3)
    output = module.attention(key, query, value, mask)
    assert len(calls) == 1, "attention must call self.attend once: runs replace it, and caches do."
    return output, calls[0], (query, key, value, mask)


def test_queries_keys_and_values_are_not_mixed_up():
    _, (query, key, value, mask, _), expected = attended()
    names = ("query", "key", "value", "attention_mask")
    for name, found, right in zip(names, (query, key, value, mask), expected, strict=True):
        assert found is right, (
            f"self.attend got something else as its {name}: its order is query, key, value, mask, "
            "dropout, while attention gets key first, then query."
        )


def test_heads_lie_side_by_side_again():
    output, _, (_, _, value, _) = attended()
    expected = torch.cat([value[:, 0], value[:, 1]], dim=-1)  # (1, 3, 8)
    same(
        output,
        expected,
        "Of two heads with 4 numbers each, a position's 8 numbers are those of "
        "head 0, then those of head 1: move the heads next to the numbers before you join them.",
    )


def test_weights_are_dropped_in_training_only():
    _, (*_, dropout), _ = attended(training=True)
    assert dropout == 0.25, f"In training, dropout is self.dropout.p, 0.25 here; found {dropout}."
    _, (*_, dropout), _ = attended(training=False)
    assert dropout == 0, f"In evaluation nothing is dropped: dropout is 0; found {dropout}."
