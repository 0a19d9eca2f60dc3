"""Prefix tuning against transformers with a cache of the same keys and values, and against PEFT."""

import pytest
import torch
from course_files import write_model
from peft import PrefixTuningConfig, get_peft_model
from technique_cases import Tried
from torch import nn
from transformers import DynamicCache, GPT2LMHeadModel

from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from extensions.prefix import Prefix
from models.gpt2 import GPT2Model
from modules.attention import causal_attention

TRIED = {"prefix": Tried("length=10", lr="0.3", varied=["length=3", "length=0"])}

N, TOKENS = 5, torch.arange(14).view(2, 7) + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("prefix") / "model")


def prefixed(folder, length: int = N, seed: int = 1):
    """A model with prefixes large enough to be seen."""
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    torch.manual_seed(seed)
    apply_extensions(model, [Prefix(length=length)])
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(40)
    return model


def cache_of(model, rows: int) -> DynamicCache:
    """The prefixes as keys and values that transformers has already seen."""
    cache = DynamicCache()
    for i, layer in enumerate(model.gpt.gpt_layers):
        prefix = layer.self_attention.prefix
        pair = (p.detach().expand(rows, -1, -1, -1).clone() for p in (prefix.key, prefix.value))
        cache.update(*pair, i)
    return cache


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_outputs_are_those_of_transformers_with_the_prefix_in_its_cache(folder, side):
    model = prefixed(folder)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval().transformer
    mask = torch.ones_like(TOKENS)
    if side != "none":
        mask[0, -3:] = 0
    mask = mask.flip(1) if side == "left" else mask
    with torch.no_grad():
        found = model.gpt(TOKENS, mask)["last_hidden_state"]
        expected = theirs(
            TOKENS,
            past_key_values=cache_of(model, 2),
            attention_mask=torch.cat([torch.ones(2, N, dtype=torch.long), mask], dim=1),
            position_ids=torch.arange(7).expand(2, 7),
        ).last_hidden_state
        plain = theirs(TOKENS, attention_mask=mask, position_ids=torch.arange(7).expand(2, 7))
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)
    assert (plain.last_hidden_state - found)[real].abs().max() > 1e-2


def test_outputs_are_peft_s_at_its_positions(folder):
    """PEFT counts the text's positions from n on."""
    model = prefixed(folder)
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    theirs = get_peft_model(theirs, PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=N)).eval()
    pairs = [
        part.detach().transpose(0, 1).flatten(1)  # (n, d): heads side by side
        for layer in model.gpt.gpt_layers
        for part in (layer.self_attention.prefix.key, layer.self_attention.prefix.value)
    ]
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(torch.cat(pairs, dim=1))
    gpt = model.gpt
    with torch.no_grad():
        embedded = gpt.word_embedding(TOKENS) + gpt.pos_embedding(torch.arange(N, N + 7))
        states = gpt.encode(embedded, torch.ones_like(TOKENS))
        found = gpt.hidden_state_to_token(gpt.final_layer_norm(states))
        expected = theirs(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_prefix_of_length_0_is_the_base_model_bit_for_bit(folder):
    base = GPT2Model.from_pretrained(str(folder)).eval()
    found = prefixed(folder, length=0).gpt(TOKENS)["last_hidden_state"]
    assert torch.equal(found, base(TOKENS)["last_hidden_state"])


def test_only_the_prefixes_are_trained_and_each_gets_a_gradient(folder):
    model = prefixed(folder)
    model.gpt(TOKENS)["last_hidden_state"].square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    places = [f"gpt.gpt_layers.{i}.self_attention.prefix." for i in range(2)]
    assert trained == {place + part for place in places for part in ("key", "value")}
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert graded == trained
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_outputs_do_not_depend_on_later_tokens(folder):
    model = prefixed(folder)
    other = TOKENS.clone()
    other[:, 4:] = 50
    with torch.no_grad():
        one, two = (model.gpt(tokens)["last_hidden_state"] for tokens in (TOKENS, other))
    assert torch.equal(one[:, :4], two[:, :4])


def test_cached_and_uncached_decoding_agree(folder):
    model = prefixed(folder)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    texts = [
        generate(model.gpt, TOKENS, mask, max_new_tokens=12, temperature=0, use_cache=cached)
        for cached in (True, False)
    ]
    for one, two in zip(*texts, strict=True):
        assert torch.equal(one, two)


def test_it_goes_before_another_kind_of_attention(folder):
    """The prefix takes whatever attention was there before it."""
    expected = prefixed(folder).gpt(TOKENS)["last_hidden_state"]
    model, calls = nn.Module(), []
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()

    def other(*inputs):
        calls.append(1)
        return causal_attention(*inputs)

    for layer in model.gpt.gpt_layers:
        layer.self_attention.attend = other
    apply_extensions(model, [Prefix(length=N)])
    model.load_state_dict(prefixed(folder).state_dict())
    torch.testing.assert_close(model.gpt(TOKENS)["last_hidden_state"], expected)
    assert len(calls) == 2


def test_a_negative_length_is_refused():
    with pytest.raises(InputError, match="length=-1: expected at least 0"):
        Prefix(length=-1)
