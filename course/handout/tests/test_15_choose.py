"""`choose` in engine/sampling.py: one token a row."""

import torch
from helpers import shaped

from engine.sampling import choose

PROBABILITIES = torch.tensor([0.1, 0.6, 0.3])
ROWS = 4000


def shares(**options) -> list[float]:
    """How often each of the three tokens is drawn."""
    logits = PROBABILITIES.log().expand(ROWS, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits, options.pop("temperature", 1.0), generator=generator, **options)
    shaped(drawn, (ROWS,), "One token for each row of logits.")
    return [round(float((drawn == token).float().mean()), 3) for token in range(3)]


def near(found: list[float], expected: list[float], message: str) -> None:
    close = all(abs(a - b) < 0.04 for a, b in zip(found, expected, strict=True))
    assert close, f"{message} Expected shares near {expected}, found {found}."


def test_temperature_0_takes_the_likeliest():
    found = shares(temperature=0)
    assert found == [0, 1, 0], f"At temperature 0 the likeliest token is taken; found {found}."


def test_at_temperature_1_the_probabilities_are_the_models():
    near(shares(), [0.1, 0.6, 0.3], "Draw from the softmax of the logits.")


def test_a_low_temperature_sharpens():
    near(shares(temperature=0.5), [0.022, 0.783, 0.196], "Divide the logits by the temperature.")


def test_top_k_leaves_k_tokens():
    near(shares(top_k=2), [0, 0.667, 0.333], "top_k=2: draw from the two likeliest.")


def test_top_p_leaves_the_nucleus():
    near(shares(top_p=0.8), [0, 0.667, 0.333], "top_p=0.8: draw from the nucleus.")
    near(shares(top_p=0.1), [0, 1, 0], "top_p=0.1: the likeliest token is the nucleus.")


def test_the_generator_alone_decides():
    logits = PROBABILITIES.log().expand(50, 3)
    first, second = (
        choose(logits, 1.0, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first, second), "The same generator must draw the same: pass it on."
