"""The published sizes are those of the paper's table, and a config is checked and never changes."""

import dataclasses
import inspect

import pytest

from config import SIZES, GPT2Config

DEFAULTS = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
}
# d, layers and heads: Radford et al. 2019, table 2 (heads: the released models)
PUBLISHED = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def test_fields_and_defaults_are_the_courses():
    assert dataclasses.asdict(GPT2Config()) == DEFAULTS
    assert list(inspect.signature(GPT2Config).parameters) == list(DEFAULTS)


def test_sizes_are_the_published_table():
    assert list(SIZES) == list(PUBLISHED)
    for name, (d, layers, heads) in PUBLISHED.items():
        shape = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads}
        shape["intermediate_size"] = 4 * d
        assert dataclasses.asdict(SIZES[name]) == DEFAULTS | shape, name


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_give_the_numbers_of_parameters_that_are_known(name):
    import torch

    from models.gpt2 import GPT2Model

    with torch.device("meta"):
        model = GPT2Model(SIZES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("heads", [5, 7, 1000])
def test_heads_that_do_not_divide_are_refused_with_both_numbers(heads):
    with pytest.raises(ValueError, match=f"768.*{heads}"):
        GPT2Config(num_attention_heads=heads)


def test_a_config_cannot_be_changed_only_replaced():
    config = GPT2Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 4
    assert dataclasses.replace(config, hidden_size=24).hidden_size == 24
    with pytest.raises(ValueError):
        dataclasses.replace(config, hidden_size=25)
