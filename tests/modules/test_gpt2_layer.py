"""A layer equals transformers' GPT2Block with the same weights: pre-norm, tanh GELU, sums."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config as TheirConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from config import GPT2Config
from modules.gpt2_layer import GPT2Layer
from utils import get_extended_attention_mask

TINY = GPT2Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def strong_layer(config=TINY, seed: int = 0) -> GPT2Layer:
    """All weights far from their first values: a bias or a norm that is left out would show."""
    torch.manual_seed(seed)
    layer = GPT2Layer(config).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            centre = 1.0 if "norm.weight" in name else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape))
    return layer


def their_block(ours: GPT2Layer, config, activation: str = "gelu_new") -> GPT2Block:
    """transformers' block with the weights of ours, copied by hand."""
    block = GPT2Block(
        TheirConfig(
            n_embd=config.hidden_size,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            layer_norm_epsilon=config.layer_norm_eps,
            activation_function=activation,
            attn_implementation="eager",
        ),
        layer_idx=0,
    ).eval()
    attention = ours.self_attention
    joined = [attention.query, attention.key, attention.value]
    linears = {
        block.attn.c_proj: ours.attention_dense,
        block.mlp.c_fc: ours.interm_dense,
        block.mlp.c_proj: ours.out_dense,
    }
    with torch.no_grad():
        block.attn.c_attn.weight.copy_(torch.cat([linear.weight for linear in joined]).T)
        block.attn.c_attn.bias.copy_(torch.cat([linear.bias for linear in joined]))
        for theirs, linear in linears.items():
            theirs.weight.copy_(linear.weight.T)
            theirs.bias.copy_(linear.bias)
    block.ln_1.load_state_dict(ours.attention_layer_norm.state_dict())
    block.ln_2.load_state_dict(ours.out_layer_norm.state_dict())
    return block


def hidden(b: int = 2, t: int = 7, d: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(b, t, d, generator=torch.Generator().manual_seed(seed))


def run_theirs(block, x, padding_mask=None) -> torch.Tensor:
    lowest, t = torch.finfo(x.dtype).min, x.shape[1]
    mask = torch.full((t, t), lowest).triu(1)[None, None]
    if padding_mask is not None:
        mask = (mask + padding_mask).clamp(min=lowest)
    return block(x, attention_mask=mask)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_attention_heads": 1},
        {"num_attention_heads": 8, "intermediate_size": 96},
        {"intermediate_size": 50, "layer_norm_eps": 0.1},
    ],
)
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_a_layer_equals_the_block_of_transformers(change, padding):
    config = dataclasses.replace(TINY, **change)
    ours, x = strong_layer(config), hidden()
    real = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    real = {"none": torch.ones_like(real), "right": real, "left": real.flip(1)}[padding]
    mask = None if padding == "none" else get_extended_attention_mask(real, torch.float32)
    expected = run_theirs(their_block(ours, config), x, mask)
    found = ours(x, mask)
    torch.testing.assert_close(found[real == 1], expected[real == 1], rtol=1e-4, atol=1e-4)


def test_the_comparison_would_see_the_exact_gelu():
    ours, x = strong_layer(), hidden()
    tanh, exact = (run_theirs(their_block(ours, TINY, name), x) for name in ("gelu_new", "gelu"))
    assert (tanh - exact).abs().max() > 3e-4
    assert (ours(x, None) - tanh).abs().max() < 3e-5


def test_gelu_is_the_tanh_approximation():
    x = torch.linspace(-5, 5, 1001)
    formula = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    found = strong_layer().interm_af(x)
    torch.testing.assert_close(found, formula, rtol=0, atol=1e-6)
    assert (found - F.gelu(x)).abs().max() > 1e-4


def test_each_part_reads_the_normed_sum_and_adds_to_the_sum_itself():
    layer, x = strong_layer(), hidden()
    read = {}
    for name in ("self_attention", "interm_dense"):
        part = getattr(layer, name)
        part.register_forward_pre_hook(
            lambda module, args, name=name: read.__setitem__(name, args[0])
        )
    output = layer(x, None)

    assert torch.equal(read["self_attention"], layer.attention_layer_norm(x))
    attended = layer.self_attention(read["self_attention"], None)
    middle = x + layer.attention_dense(attended)
    torch.testing.assert_close(read["interm_dense"], layer.out_layer_norm(middle))
    expanded = layer.interm_af(layer.interm_dense(layer.out_layer_norm(middle)))
    torch.testing.assert_close(output, middle + layer.out_dense(expanded))


def test_a_layer_that_adds_nothing_gives_its_input_back():
    layer, x = strong_layer(), 100 * hidden()
    for dense in (layer.attention_dense, layer.out_dense):
        torch.nn.init.zeros_(dense.weight)
        torch.nn.init.zeros_(dense.bias)
    assert torch.equal(layer(x, None), x)


def test_add_is_residual_with_dropout_on_the_new_part_only():
    torch.manual_seed(0)
    layer = GPT2Layer(dataclasses.replace(TINY, hidden_dropout_prob=0.5))
    x, new = hidden(seed=2), hidden(seed=3)
    dense, dropout = layer.attention_dense, layer.attention_dropout
    layer.eval()
    torch.testing.assert_close(layer.add(x, new, dense, dropout), x + dense(new))
    layer.train()
    added, full = layer.add(x, new, dense, dropout) - x, dense(new)
    dropped = added == 0
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(added[~dropped], 2 * full[~dropped], rtol=1e-4, atol=1e-5)


def test_both_dropouts_act_in_training_mode_only():
    config = dataclasses.replace(TINY, hidden_dropout_prob=0.5)
    layer, x = strong_layer(config), hidden()
    assert torch.equal(layer(x, None), strong_layer()(x, None))
    for name in ("attention_dropout", "out_dropout"):
        layer.eval()
        getattr(layer, name).train()
        assert not torch.allclose(layer(x, None), strong_layer()(x, None)), name


@pytest.mark.parametrize("size", [128, 96, 50])
def test_the_intermediate_size_is_the_configs(size):
    layer = GPT2Layer(dataclasses.replace(TINY, intermediate_size=size))
    assert layer.interm_dense.weight.shape == (size, 32)
    assert layer.out_dense.weight.shape == (32, size)


def test_any_object_with_the_attributes_will_do():
    names = "hidden_size layer_norm_eps hidden_dropout_prob intermediate_size"
    names += " num_attention_heads attention_probs_dropout_prob"
    config = SimpleNamespace(**{name: getattr(TINY, name) for name in names.split()})
    ours, same = strong_layer(config), strong_layer(TINY)
    assert torch.equal(ours(hidden(), None), same(hidden(), None))
