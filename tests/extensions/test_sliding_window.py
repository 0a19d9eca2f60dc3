"""Sliding-window attention against an explicit mask; nothing in it is as large as t × t."""

import functools

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from extensions.prefix import Prefix
from extensions.sliding_window import SlidingWindow, windowed_attention
from models.gpt2 import GPT2Model
from modules.attention import causal_attention
from utils import get_extended_attention_mask

TRIED = {"sliding_window": Tried(varied=["window=3,sinks=2", "window=1"])}

SHAPES = [(1, 4, 0), (7, 3, 0), (12, 4, 2), (13, 5, 1), (9, 20, 3), (16, 1, 0), (10, 2, 12)]


def inputs(t: int, *, b: int = 2, dtype=torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(t)
    return [torch.randn(b, 3, t, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def with_explicit_mask(query, key, value, padding_mask, window: int, sinks: int):
    """Dense scores, and a mask written from the definition."""
    t, lowest = query.shape[-2], torch.finfo(query.dtype).min
    i, j = torch.arange(t)[:, None], torch.arange(t)[None]
    sees = (j <= i) & ((i - j < window) | (j < sinks))
    scores = (query @ key.mT / 8**0.5).masked_fill(~sees, lowest)
    if padding_mask is not None:
        scores = (scores + padding_mask).clamp(min=lowest)
    return scores.softmax(dim=-1) @ value


@pytest.mark.parametrize("t, window, sinks", SHAPES)
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_it_is_dense_attention_with_an_explicit_mask(t, window, sinks, side):
    """Forward and backward; also where t is no multiple of the window."""
    query, key, value = inputs(t)
    mask, real = None, torch.ones(2, t, dtype=torch.bool)
    if side != "none" and t > 3:
        real[0, -2:] = False
        real = real.flip(1) if side == "left" else real
        mask = get_extended_attention_mask(real.long(), query.dtype)
    results = []
    for attend in (windowed_attention, None):
        if attend:
            out = attend(query, key, value, mask, 0.0, window=window, sinks=sinks)
        else:
            out = with_explicit_mask(query, key, value, mask, window, sinks)
        out = out * real[:, None, :, None]
        grads = torch.autograd.grad(out.square().sum(), (query, key, value))
        results.append((out, *grads))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_window_as_long_as_the_text_is_causal_attention():
    query, key, value = inputs(11)
    found = windowed_attention(query, key, value, None, 0.0, window=11, sinks=0)
    torch.testing.assert_close(found, causal_attention(query, key, value, None, 0.0))


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_memory_grows_linearly_with_the_text():
    largest = {}
    for t in (256, 512, 1024, 2048):
        query, key, value = inputs(t, b=1, dtype=torch.float32)
        with LargestTensor() as note:
            out = windowed_attention(query, key, value, None, 0.1, window=32, sinks=4)
            out.sum().backward()
        largest[t] = note.largest
    assert largest[2048] == 2 * largest[1024] == 8 * largest[256]
    assert largest[2048] < 3 * 2048 * 2048 / 10


@pytest.mark.parametrize("window, sinks", [(3, 0), (4, 2), (50, 0), (1, 1)])
def test_cached_and_uncached_decoding_agree(tmp_path, window, sinks):
    model = GPT2Model.from_pretrained(str(write_model(tmp_path / "m"))).eval()
    holder = torch.nn.Module()
    holder.gpt = model
    apply_extensions(holder, [SlidingWindow(window=window, sinks=sinks)])
    tokens = torch.arange(24).view(3, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    texts = [
        generate(model, tokens, mask, max_new_tokens=15, temperature=0, use_cache=cached)
        for cached in (True, False)
    ]
    for one, two in zip(*texts, strict=True):
        assert torch.equal(one, two)


def test_keys_outside_the_window_have_no_influence_but_for_the_sinks():
    query, key, value = (x.detach() for x in inputs(20))
    attend = functools.partial(windowed_attention, dropout=0.0, window=4, sinks=2)
    one = attend(query, key, value, None)
    other = value.clone()
    other[:, :, 2:10] += 100
    two = attend(query, key, other, None)
    assert torch.equal(one[:, :, 13:], two[:, :, 13:])
    assert not torch.allclose(one[:, :, 12], two[:, :, 12])
    other = value.clone()
    other[:, :, 1] += 100
    assert not torch.isclose(attend(query, key, other, None)[:, :, 19], one[:, :, 19]).any()


def test_it_refuses_a_prefix(tmp_path):
    holder = torch.nn.Module()
    holder.gpt = GPT2Model.from_pretrained(str(write_model(tmp_path / "m")))
    with pytest.raises(InputError, match="it goes with no prefix"):
        apply_extensions(holder, [SlidingWindow(window=4), Prefix(length=3)])
    query, key, value = inputs(6)
    with pytest.raises(InputError, match="4 queries, 6 keys: it goes with no prefix"):
        windowed_attention(query[:, :, 2:], key, value, None, 0.0, window=4, sinks=0)


@pytest.mark.parametrize("options", [{"window": 0}, {"sinks": -1}])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match="expected a window of at least 1"):
        SlidingWindow(**options)
