"""Fewer layers are a shallower GPT-2, one-hot mixes are single layers, frozen layers stay."""

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch import nn

from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from extensions.layers import Layers
from models.gpt2 import GPT2Model

TRIED = {"layers": Tried("mix=true", varied=["use=1", "mix=true,freeze=1"])}
TOKENS = torch.arange(18).view(2, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("layers") / "model"
    return str(write_model(made, hidden_size=32, num_hidden_layers=3))


def prepared(folder, **options):
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(folder).eval()
    apply_extensions(model, [Layers(**options)])
    return model.gpt


def hidden(gpt):
    return gpt(TOKENS)["last_hidden_state"]


def test_all_layers_are_the_base_model_bit_for_bit(folder):
    plain = GPT2Model.from_pretrained(folder)
    for options in ({}, {"use": 3}, {"freeze": 3}):
        assert torch.equal(hidden(prepared(folder, **options)), hidden(plain))


@pytest.mark.parametrize("n", [1, 2])
def test_the_first_layers_alone_are_what_the_whole_model_has_after_them(folder, n):
    plain = GPT2Model.from_pretrained(folder)
    state = plain.embed(TOKENS)
    for layer in plain.gpt_layers[:n]:
        state = layer(state, None)
    gpt = prepared(folder, use=n)
    torch.testing.assert_close(hidden(gpt), plain.final_layer_norm(state))
    assert not any(f"gpt_layers.{n}." in name for name in gpt.state_dict())


@pytest.mark.parametrize("chosen", [0, 1, 2, 3])
def test_a_mix_of_one_is_that_layer_and_of_the_last_one_the_base_model(folder, chosen):
    gpt = prepared(folder, mix=True)
    gpt.final_layer_norm.weights.data[chosen] = 1e4  # softmax gives exactly 1 and 0
    plain = GPT2Model.from_pretrained(folder)
    state = plain.embed(TOKENS)
    for layer in plain.gpt_layers[:chosen]:
        state = layer(state, None)
    torch.testing.assert_close(hidden(gpt), plain.final_layer_norm(state))


def test_a_mix_is_equation_1(folder):
    gpt = prepared(folder, mix=True)
    mix = gpt.final_layer_norm
    nn.init.normal_(mix.weights)
    mix.scale.data.fill_(0.7)
    plain = GPT2Model.from_pretrained(folder)
    states = [plain.embed(TOKENS)]
    for layer in plain.gpt_layers:
        states.append(layer(states[-1], None))
    shares = mix.weights.exp() / mix.weights.exp().sum()
    expected = 0.7 * sum(s * plain.final_layer_norm(h) for s, h in zip(shares, states, strict=True))
    torch.testing.assert_close(hidden(gpt), expected)
    hidden(gpt).sum().backward()
    assert mix.weights.grad.abs().min() > 0 and mix.scale.grad != 0


@pytest.mark.parametrize("options", [{"use": 2}, {"mix": True}, {"mix": True, "use": 2}])
def test_cached_decoding_is_uncached_decoding(folder, options):
    gpt = prepared(folder, **options)
    texts = [
        [row.tolist() for row in generate(gpt, TOKENS, max_new_tokens=8, temperature=0, **how)]
        for how in ({}, {"use_cache": False}, {"record": True})
    ]
    assert texts[0] == texts[1] == texts[2]


def test_frozen_layers_and_embeddings_get_no_gradient(folder):
    gpt = prepared(folder, freeze=2)
    hidden(gpt).square().sum().backward()
    for name, parameter in gpt.named_parameters():
        low = "embedding" in name or any(f"gpt_layers.{i}." in name for i in (0, 1))
        assert (parameter.grad is None) == low, name


@pytest.mark.parametrize(
    "options", [{"use": 4}, {"use": -1}, {"freeze": 4}, {"use": 1, "freeze": 2}]
)
def test_more_layers_than_there_are_are_refused(folder, options):
    with pytest.raises(InputError, match=r"layers: use=.*expected at most 3 layers"):
        prepared(folder, **options)
