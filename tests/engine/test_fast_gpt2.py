"""GPT-2 faster: the lesson's numbers and gradients, with less work."""

import pytest
import torch
from torch import nn

from config import GPT2Config
from engine.fast.attention import fused_causal_attention
from engine.fast.gpt2 import FastGPT2, LastTokenGPT2, accelerate
from models.gpt2 import GPT2Model

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


def last_token_form(model) -> LastTokenGPT2:
    """With the same weights, not copies of them."""
    return accelerate(Holder(model)).gpt


def gradients(model, *batch) -> dict:
    torch.manual_seed(2)
    weight = torch.randn(3, SHAPE.hidden_size, dtype=torch.float64)
    model.zero_grad()
    (model(*batch)["last_token"] * weight).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("layers", [1, 3])
def test_token_and_gradients_are_those_of_the_whole_layer(model, padding, layers):
    model.gpt_layers = model.gpt_layers[:layers]
    batch = inputs(padding)
    whole, expected = model(*batch), gradients(model, *batch)
    fast = last_token_form(model)
    last, found = fast(*batch), gradients(fast, *batch)
    assert last.keys() == {"last_token"}
    torch.testing.assert_close(last["last_token"], whole["last_token"], atol=1e-12, rtol=1e-9)
    assert all(gradient.any() for gradient in expected.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-11, rtol=1e-8, msg=name)


def test_all_but_keys_and_values_is_computed_at_one_position(model, monkeypatch):
    seen = {}

    def linear(x, weight, bias=None, multiply=torch.nn.functional.linear):
        seen.setdefault(weight.data_ptr(), set()).add(x.shape[-2])
        return multiply(x, weight, bias)

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    last_token_form(model)(*inputs("right"))
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
    model = last_token_form(model.float().train())
    for layer in model.gpt_layers:
        layer.self_attention.dropout.p = layer.out_dropout.p = 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        first, second = (model(*inputs("right"))["last_token"] for _ in range(2))
    assert first.isfinite().all() and not torch.equal(first, second)
    first.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Holder(nn.Module):
    """What a task's model is for `accelerate`."""

    def __init__(self, gpt, *, last_only=True):
        super().__init__()
        self.gpt, self.reads_last_token_only = gpt, last_only


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("last_only", [False, True])
def test_the_last_token_s_form_is_for_models_that_read_no_more_and_have_no_extension(
    model, extended, last_only
):
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    fast = accelerate(Holder(model, last_only=last_only), extended=extended).gpt
    assert isinstance(fast, LastTokenGPT2) == (last_only and not extended)
    assert {name: tensor.data_ptr() for name, tensor in fast.state_dict().items()} == before
    assert fast.training == model.training


def test_a_form_that_serves_stays_and_an_extension_that_comes_later_gets_whole_layers(
    model,
):
    holder = accelerate(Holder(model))
    short = holder.gpt
    assert accelerate(holder).gpt is short
    whole = accelerate(holder, extended=True).gpt
    assert type(whole) is FastGPT2 and whole.gpt_layers is short.gpt_layers
    assert accelerate(holder).gpt is whole and accelerate(holder, extended=True).gpt is whole


@pytest.mark.parametrize("padding", ["right", "none"])
def test_the_fast_form_gives_the_lesson_s_states_and_logits(model, padding):
    batch, real = inputs(padding), torch.tensor(MASKS["right"]).bool()
    real = real if padding == "right" else torch.ones_like(real)
    expected = model(*batch)
    fast = accelerate(Holder(model), extended=True).gpt
    assert fast.gpt_layers[0].self_attention.attend is fused_causal_attention
    found = fast(*batch)
    for name in expected:
        where = real if name == "last_hidden_state" else slice(None)
        torch.testing.assert_close(found[name][where], expected[name][where], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("rows", [1, 4, 5, 12, 16, 17])
def test_logits_are_the_same_from_either_side_of_the_product(model, rows):
    fast, states = FastGPT2(SHAPE).double(), torch.randn(rows, 24, dtype=torch.float64)
    logits = fast.hidden_state_to_token(states)
    assert logits.is_contiguous()
    torch.testing.assert_close(logits, states @ fast.word_embedding.weight.T)
