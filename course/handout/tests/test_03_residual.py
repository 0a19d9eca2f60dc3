"""`GPT2Layer.add` in modules/gpt2_layer.py."""

import torch
from helpers import CONFIG, same, seeded

from modules.gpt2_layer import GPT2Layer

INPUT, OUTPUT = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[10.0, 20.0]]])


def add(dense, dropout):
    return seeded(GPT2Layer, CONFIG).add(INPUT, OUTPUT, dense, dropout)


def test_the_dense_layer_is_of_the_output():
    found = add(lambda x: 3 * x, lambda x: x)
    same(
        found,
        INPUT + 3 * OUTPUT,
        "With a dense layer that multiplies by 3, the sum is input + "
        "3 output: the input goes past the dense layer.",
    )


def test_dropout_leaves_the_input_alone():
    found = add(lambda x: x, torch.zeros_like)
    same(
        found,
        INPUT,
        "With a dropout that drops everything, only the input is left: drop what "
        "the dense layer gave, not the sum.",
    )


def test_dropout_comes_after_the_dense_layer():
    found = add(lambda x: x + 1, torch.zeros_like)
    same(found, INPUT, "The dense layer's bias must be dropped, too: dropout comes after it.")
