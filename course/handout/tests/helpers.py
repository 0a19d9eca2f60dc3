"""What the tests share: a tiny GPT-2 with random weights, and failures in words."""

from types import SimpleNamespace

import pytest
import torch

from config import GPT2Config

SHAPE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 6,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.5,  # large, so that a small mistake shows
}
CONFIG = GPT2Config(**SHAPE)
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])  # the first text has three tokens


def settings(**values) -> SimpleNamespace:
    """What a task's model is built from, around the tiny GPT-2."""
    return SimpleNamespace(pretrained=False, gpt_config=SHAPE, **values)


def seeded(make, *arguments):
    """Call `make` with the same random numbers every time."""
    torch.manual_seed(0)
    return make(*arguments)


def shaped(found, shape: tuple[int, ...], message: str) -> None:
    """Fail with the message unless this is a tensor of this shape."""
    if not isinstance(found, torch.Tensor):
        fail(message, f"{found!r} (is a return missing?)", f"a tensor of shape {shape}")
    if tuple(found.shape) != shape:
        fail(message, f"shape {tuple(found.shape)}", f"shape {shape}")


def same(found, expected, message: str) -> None:
    """Fail with the message and both tensors unless they are equal up to rounding."""
    expected = torch.as_tensor(expected)
    shaped(found, tuple(expected.shape), message)
    if not torch.allclose(found.float(), expected.float(), atol=1e-5, rtol=1e-4):
        fail(message, found.tolist(), expected.tolist())


def different(found, other, message: str) -> None:
    """Fail with the message if two tensors are equal."""
    if torch.equal(found, other):
        pytest.fail(message, pytrace=False)


def fail(message: str, found, expected) -> None:
    pytest.fail(f"{message}\n    found    {found}\n    expected {expected}", pytrace=False)
