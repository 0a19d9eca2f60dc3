"""Gradient checkpointing: the plain run's numbers from far less that is kept."""

import copy

import pytest
import torch
from technique_cases import Tried
from torch.autograd.graph import saved_tensors_hooks

from config import GPT2Config
from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from extensions.gradient_checkpointing import GradientCheckpointing
from models.gpt2 import GPT2Model

TRIED = {"gradient_checkpointing": Tried(varied=["every=2", "every=3"])}

LAYERS = 6


def two_models(every: int = 1):
    """A GPT-2 with dropout, and one of the same weights that computes again."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
    plain = torch.nn.Module()
    plain.gpt = GPT2Model(GPT2Config(vocab_size=30, num_hidden_layers=LAYERS, **shape))
    forgetful = copy.deepcopy(plain)
    apply_extensions(forgetful, [GradientCheckpointing(every=every)])
    return plain.train(), forgetful.train()


def loss_of(model):
    torch.manual_seed(1)  # dropout
    tokens = torch.arange(36).view(3, 12) % 30
    return model.gpt(tokens)["last_hidden_state"].square().mean()


def gradients(model) -> dict:
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def kept(model) -> int:
    """Bytes that the forward pass keeps for the gradient, weights aside."""
    own, sizes = {p.data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    del loss
    return sum(sizes.values())


@pytest.mark.parametrize("every", [1, 2, 5])
def test_gradients_are_the_plain_ones_with_dropout(every):
    plain, forgetful = two_models(every)
    expected, found = gradients(plain), gradients(forgetful)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)
    assert float(expected["gpt.gpt_layers.0.interm_dense.weight"].abs().max()) > 0


def test_it_keeps_a_fraction():
    plain, forgetful = two_models()
    assert kept(forgetful) < kept(plain) / 5


def test_fewer_segments_keep_more():
    plain, half = two_models(every=2)
    _, forgetful = two_models(every=1)
    assert kept(forgetful) < kept(half) < kept(plain)


def test_names_and_generation_stay():
    plain, forgetful = two_models()
    assert forgetful.state_dict().keys() == plain.state_dict().keys()
    prompt = torch.tensor([[3, 5, 7]])
    [one], [other] = (
        generate(model.eval().gpt, prompt, max_new_tokens=6, temperature=0, end_token=0)
        for model in (plain, forgetful)
    )
    assert torch.equal(one, other)


def test_every_0_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        GradientCheckpointing(every=0)
