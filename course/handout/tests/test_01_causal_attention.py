"""`causal_attention` in modules/attention.py."""

import math

import torch
from helpers import different, same, seeded

from modules.attention import causal_attention

HIDDEN = torch.finfo(torch.float32).min


def rows(t: int, seed: int = 0):
    """Random queries, keys or values (1, 2, t, 4)."""
    return torch.randn(1, 2, t, 4, generator=torch.Generator().manual_seed(seed))


def test_equal_scores_give_the_mean_of_what_a_position_sees():
    value = torch.tensor([2.0, 4.0, 9.0]).reshape(1, 1, 3, 1)
    zeros = torch.zeros(1, 1, 3, 4)
    found = causal_attention(zeros, zeros, value, None, 0.0)
    expected = torch.tensor([2.0, 3.0, 5.0]).reshape(1, 1, 3, 1)
    same(
        found,
        expected,
        "With equal scores, position i averages the values 0 to i: a row of "
        "weights sums to 1, and nothing that comes later is in it.",
    )


def test_nothing_depends_on_the_future():
    query, key, value = rows(5), rows(5, 1), rows(5, 2)
    before = causal_attention(query, key, value, None, 0.0)
    key[:, :, 3:], value[:, :, 3:] = 7.0, -7.0
    after = causal_attention(query, key, value, None, 0.0)
    same(
        after[:, :, :3],
        before[:, :, :3],
        "Positions 0 to 2 changed when keys and values 3 and 4 "
        "did: a position must not see what follows it. Is the mask applied before the softmax?",
    )
    different(
        after[:, :, 3],
        before[:, :, 3],
        "Position 3 must see itself: its own key and value "
        "were changed, its output was not. Is the diagonal masked, too?",
    )


def test_scores_are_divided_by_the_root_of_the_head_size():
    query = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(1, 1, 2, 4)
    key = torch.zeros(1, 1, 2, 4)
    key[..., 1, 3] = 2 * math.log(3)  # divided by the root of 4: the odds are 1 to 3
    value = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    found = causal_attention(query, key, value, None, 0.0)[0, 0, 1]
    same(
        found,
        [0.75],
        "Scores 0 and log 9 with a head size of 4 give the weights 1/4 and 3/4: "
        "divide by the square root of the head size, before the softmax.",
    )


def test_padding_gets_no_weight():
    query, key, value = rows(4), rows(4, 1), rows(4, 2)
    mask = torch.tensor([0.0, 0.0, 0.0, HIDDEN]).reshape(1, 1, 1, 4)
    before = causal_attention(query, key, value, mask, 0.0)
    value[:, :, 3] = 50.0
    after = causal_attention(query, key, value, mask, 0.0)
    same(
        after,
        before,
        "The last key is padding, and yet its value is seen: add padding_mask to the scores.",
    )


def test_padding_on_the_left_stays_finite():
    mask = torch.tensor([HIDDEN, 0.0, 0.0]).reshape(1, 1, 1, 3)
    found = causal_attention(rows(3), rows(3, 1), rows(3, 2), mask, 0.0)
    assert bool(found.isfinite().all()), (
        "Position 0 is padding and sees only itself: its output means nothing, but it must be "
        "finite. Add padding_mask as it is, do not turn it into -inf."
    )


def test_fewer_queries_than_keys_are_the_last_positions():
    query, key, value = rows(5), rows(5, 1), rows(5, 2)
    whole = causal_attention(query, key, value, None, 0.0)
    found = causal_attention(query[:, :, 3:], key, value, None, 0.0)
    same(
        found,
        whole[:, :, 3:],
        "Given 2 queries and 5 keys, the queries are positions 3 and 4: "
        "shift the diagonal of the mask by s - t.",
    )


def test_dropout_is_of_the_weights():
    ones = torch.ones(1, 1, 1, 4)
    query = torch.zeros(400, 1, 1, 4)
    found = seeded(causal_attention, query, query, ones.expand(400, 1, 1, 4), None, 0.5)
    kept = sorted(set(found.flatten().tolist()))
    assert kept == [0.0, 2.0], (
        "One key, weight 1, dropout 0.5: the weight is dropped (0) or doubled (2), for the whole "
        f"value at once; found {kept[:5]}. Apply dropout to the weights, after the softmax."
    )
