"""`keep_top_p` in engine/sampling.py."""

import pytest
import torch

from engine.sampling import keep_top_p

PROBABILITIES = torch.tensor([[0.1, 0.5, 0.05, 0.35], [0.25, 0.2, 0.3, 0.25]])


def kept(top_p: float) -> list[list[int]]:
    """The tokens of each row that are left."""
    found = keep_top_p(PROBABILITIES.log(), top_p)
    return [row.isfinite().nonzero()[:, 0].tolist() for row in found]


@pytest.mark.parametrize(
    "top_p, first, second",
    [
        (0.4, [1], [0, 2]),
        (0.6, [1, 3], [0, 2, 3]),
        (0.9, [0, 1, 3], [0, 1, 2, 3]),
    ],
)
def test_the_fewest_tokens_that_reach_p_are_kept(top_p, first, second):
    found = kept(top_p)
    assert found[0] == first, (
        f"Of 0.1, 0.5, 0.05, 0.35 at p = {top_p} the tokens {first} are kept, found {found[0]}: "
        "the one that reaches p is the last to stay; places are those of the vocabulary."
    )
    assert len(found[1]) == len(second), (
        f"Of 0.25, 0.2, 0.3, 0.25 at p = {top_p} {len(second)} tokens are kept, found {found[1]}."
    )


def test_the_likeliest_token_always_stays():
    found = kept(0.0)
    assert found == [[1], [2]], f"At p = 0 the likeliest token stays; found {found}."


def test_at_p_1_everything_stays():
    found = kept(1.0)
    assert found == [[0, 1, 2, 3]] * 2, f"At p = 1 nothing is dropped; found {found}."


def test_what_stays_is_not_changed():
    logits = PROBABILITIES.log()
    found = keep_top_p(logits, 0.6)
    left = found.isfinite()
    assert torch.equal(found[left], logits[left]), "The logits that stay keep their values."
    assert bool((found[~left] == -torch.inf).all()), "Those that go become minus infinity."
