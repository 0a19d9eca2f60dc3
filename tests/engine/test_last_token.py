"""The last layer for one token of each text alone: the same numbers and gradients, less work."""

import pytest
import torch

from config import GPT2Config
from engine.fast.last_token import is_plain
from models.gpt2 import GPT2Model
from modules.attention import causal_attention, fused_causal_attention

SHAPE = GPT2Config(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=32,
    initializer_range=0.3,
)
MASKS = {
    "right": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    "left": [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "holes": [[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0]],
    "none": None,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2Model(SHAPE).double()


def inputs(padding: str):
    tokens = torch.randint(50, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = MASKS[padding]
    return tokens, None if mask is None else torch.tensor(mask)


def gradients(model, *batch, **how) -> dict:
    torch.manual_seed(2)
    weight = torch.randn(3, SHAPE.hidden_size, dtype=torch.float64)
    model.zero_grad()
    (model(*batch, **how)["last_token"] * weight).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("layers", [1, 3])
def test_token_and_gradients_are_those_of_the_whole_layer(model, padding, layers):
    model.gpt_layers = model.gpt_layers[:layers]
    batch = inputs(padding)
    whole, last = model(*batch), model(*batch, last_only=True)
    assert last.keys() == {"last_token"}
    torch.testing.assert_close(last["last_token"], whole["last_token"], atol=1e-12, rtol=1e-9)
    expected, found = gradients(model, *batch), gradients(model, *batch, last_only=True)
    assert all(gradient.any() for gradient in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-11, rtol=1e-8, msg=name)


def test_all_but_keys_and_values_is_computed_at_one_position(model, monkeypatch):
    seen = {}

    def linear(x, weight, bias=None, multiply=torch.nn.functional.linear):
        seen.setdefault(weight.data_ptr(), set()).add(x.shape[-2])
        return multiply(x, weight, bias)

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    model(*inputs("right"), last_only=True)
    first, last = model.gpt_layers[0], model.gpt_layers[-1]
    positions = {
        name: seen[module.weight.data_ptr()]
        for layer, which in ((first, "first"), (last, "last"))
        for name, module in layer.named_modules(prefix=which)
        if isinstance(module, torch.nn.Linear)
    }
    for name, found in positions.items():
        everywhere = name.startswith("first") or name.endswith(("key", "value"))
        assert (6 in found) == everywhere, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_with_dropout_and_in_bfloat16(model, precision):
    model = model.float().train()
    for layer in model.gpt_layers:
        layer.self_attention.dropout.p = layer.out_dropout.p = 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        first, second = (model(*inputs("right"), last_only=True)["last_token"] for _ in range(2))
    assert first.isfinite().all() and not torch.equal(first, second)
    first.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def hook_a_part(layer, seen):
    layer.out_dense.register_forward_hook(lambda *these: seen.append(these[-1].shape[1]))


def hook_the_layer(layer, seen):
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))


def replace_its_attention(layer, seen):
    def attend(*inputs):
        seen.append(inputs[0].shape[2])
        return causal_attention(*inputs)

    layer.self_attention.attend = attend


def replace_a_forward(layer, seen):
    def forward(x, forward=layer.interm_dense.forward):
        seen.append(x.shape[1])
        return forward(x)

    layer.interm_dense.forward = forward


@pytest.mark.parametrize(
    "change", [hook_a_part, hook_the_layer, replace_its_attention, replace_a_forward]
)
def test_whoever_looks_at_the_layer_sees_all_positions(model, change):
    seen = []
    change(model.gpt_layers[-1], seen)
    assert not is_plain(model.gpt_layers[-1]) and is_plain(model.gpt_layers[0])
    batch = inputs("right")
    found = model(*batch, last_only=True)
    assert set(seen) == {6}
    assert torch.equal(found["last_token"], model(*batch)["last_token"])


def test_a_layer_of_the_project_is_plain(model):
    assert all(is_plain(layer) for layer in model.gpt_layers)
    assert model.gpt_layers[0].self_attention.attend is fused_causal_attention
