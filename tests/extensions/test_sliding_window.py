"""Sliding-window attention against explicit masks; nothing in it is as large as t × t."""

import functools
from types import SimpleNamespace

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from engine.language_model import LanguageModel
from extensions.prefix import Prefix
from extensions.sliding_window import SlidingWindow, longformer_attention, windowed_attention
from models.gpt2 import GPT2Model
from modules.attention import causal_attention
from sonnet_generation import SonnetGPT
from utils import get_extended_attention_mask

DILATED = "window=3,dilation=2,dilated_heads=3,dilated_layers=1"
TRIED = {
    "sliding_window": Tried(
        varied=["window=3,sinks=2", "window=1,last=true", DILATED],
        refused={
            ("window=1,last=true", "sonnet_generation"): "a language model reads from every token"
        },
    )
}

# t, window, sinks, dilation
SHAPES = [(1, 4, 0, 1), (7, 3, 0, 1), (12, 4, 2, 1), (13, 5, 1, 1), (9, 20, 3, 1), (16, 1, 0, 1)]
SHAPES += [(10, 2, 12, 1), (12, 3, 0, 2), (13, 2, 3, 2), (17, 2, 4, 3), (5, 4, 1, 7), (9, 9, 0, 2)]


def inputs(t: int, *, b: int = 2, dtype=torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(t)
    return [torch.randn(b, 3, t, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def padded(t: int, side: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(2, t), true at real tokens, and the mask that is added to scores."""
    real = torch.ones(2, t, dtype=torch.bool)
    if side == "none" or t <= 3:
        return real, None
    real[0, -2:] = False
    real = real.flip(1) if side == "left" else real
    return real, get_extended_attention_mask(real.long(), torch.float64)


def seen(t: int, window: int, sinks: int = 0, dilation: int = 1) -> torch.Tensor:
    """(t, t), written from the definition."""
    i, j = torch.arange(t)[:, None], torch.arange(t)[None]
    near = (i - j < window * dilation) & ((i - j) % dilation == 0)
    return (j <= i) & (near | (j < sinks))


def dense(query, key, value, padding_mask, sees):
    """Dense scores, and an explicit mask: (t, t), or one of each row and head."""
    lowest = torch.finfo(query.dtype).min
    scores = (query @ key.mT / 8**0.5).masked_fill(~sees, lowest)
    if padding_mask is not None:
        scores = (scores + padding_mask).clamp(min=lowest)
    return scores.softmax(dim=-1) @ value


def assert_same(attend, other, tensors, real) -> None:
    """Forward and backward, at real tokens."""
    results = []
    for function in (attend, other):
        out = function(*tensors) * real[:, None, :, None]
        results.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("t, window, sinks, dilation", SHAPES)
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_it_is_dense_attention_with_an_explicit_mask(t, window, sinks, dilation, side):
    """Also where t is no multiple of the window."""
    real, mask = padded(t, side)
    options = {"window": window, "sinks": sinks, "dilation": dilation}
    assert_same(
        functools.partial(windowed_attention, padding_mask=mask, dropout=0.0, **options),
        functools.partial(dense, padding_mask=mask, sees=seen(t, **options)),
        inputs(t),
        real,
    )


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_heads_have_their_own_masks_and_the_last_token_sees_all_before_it(side, dilation):
    t, window, sinks = 14, 3, 1
    real, mask = padded(t, side)
    heads = [seen(t, window, sinks, m) for m in (1, dilation, dilation)]
    sees = torch.stack(heads).expand(2, -1, -1, -1).clone()
    for row, last in enumerate([int(each.nonzero().max()) for each in real]):
        sees[row, :, last, : last + 1] = True
    options = {"window": window, "sinks": sinks, "dilation": dilation, "dilated_heads": 2}
    assert_same(
        functools.partial(
            longformer_attention, padding_mask=mask, dropout=0.0, last=True, **options
        ),
        functools.partial(dense, padding_mask=mask, sees=sees),
        inputs(t),
        real,
    )


def test_sinks_are_the_global_tokens_of_the_paper_in_a_causal_model():
    """Those see all and are seen by all, as far as that lies before them."""
    i, j = torch.arange(12)[:, None], torch.arange(12)[None]
    symmetric = (i - j < 4) | (i < 3) | (j < 3)
    assert torch.equal((j <= i) & symmetric, seen(12, window=4, sinks=3))


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


@pytest.mark.parametrize("options", [{}, {"dilation": 2, "dilated_heads": 1, "last": True}])
def test_memory_grows_linearly_with_the_text(options):
    options = {"dilation": 1, "dilated_heads": 1, "last": False} | options
    largest = {}
    for t in (256, 512, 1024, 2048):
        query, key, value = inputs(t, b=1, dtype=torch.float32)
        with LargestTensor() as note:
            out = longformer_attention(query, key, value, None, 0.1, window=32, sinks=4, **options)
            out.sum().backward()
        largest[t] = note.largest
    assert largest[2048] == 2 * largest[1024] == 8 * largest[256]
    assert largest[2048] < 3 * 2048 * 2048 / 10


def equipped(folder, *extensions) -> torch.nn.Module:
    holder = torch.nn.Module()
    holder.gpt = GPT2Model.from_pretrained(str(write_model(folder / "m"))).eval()
    apply_extensions(holder, extensions)
    return holder


DECODED = [(3, 0, 1), (4, 2, 1), (50, 0, 1), (1, 1, 1), (3, 0, 2), (2, 2, 3)]


@pytest.mark.parametrize("window, sinks, dilation", DECODED)
def test_cached_and_uncached_decoding_agree(tmp_path, window, sinks, dilation):
    model = equipped(tmp_path, SlidingWindow(window, sinks, dilation)).gpt
    tokens = torch.arange(24).view(3, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    texts = [
        generate(model, tokens, mask, max_new_tokens=15, temperature=0, **how)
        for how in ({"use_cache": False}, {"use_cache": True}, {"record": True})
    ]
    for one, *others in zip(*texts, strict=True):
        assert all(torch.equal(one, other) for other in others)


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


@torch.no_grad()
def weights_of(gpt, t: int = 12) -> list[torch.Tensor]:
    """Which keys have weight, (h, t, t), in each layer."""
    query, key, _ = (torch.randn(1, 4, t, 8) for _ in range(3))
    identity = torch.eye(t).expand(1, 4, -1, -1)
    attends = [layer.self_attention.attend for layer in gpt.gpt_layers]
    return [attend(query, key, identity, None, 0.0)[0] > 0 for attend in attends]


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_heads_are_dilated_in_the_uppermost_layers(tmp_path, layers):
    options = {"dilation": 3, "dilated_heads": 2, "dilated_layers": layers}
    model = equipped(tmp_path, SlidingWindow(2, **options))
    plain, dilated = seen(12, 2), seen(12, 2, dilation=3)
    lower, upper = weights_of(model.gpt)
    assert torch.equal(upper, torch.stack([plain, plain, dilated, dilated]))
    assert torch.equal(lower, torch.stack([plain] * 4) if layers == 1 else upper)


@torch.no_grad()
def test_a_classifier_s_last_token_sees_the_whole_text_and_no_padding(tmp_path):
    gpt = equipped(tmp_path, SlidingWindow(window=1, last=True)).gpt
    tokens = torch.arange(5, 14)[None]
    found = gpt(tokens, torch.ones_like(tokens))["last_token"]
    for place in range(8):
        other = tokens.clone()
        other[0, place] = 99
        assert not torch.allclose(gpt(other, torch.ones_like(other))["last_token"], found)
    wider = torch.nn.functional.pad(tokens, (0, 4))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 4))
    torch.testing.assert_close(gpt(wider, mask)["last_token"], found)


def test_a_global_last_token_is_refused_where_every_token_is_read_from(tmp_path):
    path = write_model(tmp_path / "m")
    args = SimpleNamespace(model_size=str(path))
    for model in (SonnetGPT(args), LanguageModel(args)):
        with pytest.raises(InputError, match="last=true: a language model reads"):
            apply_extensions(model, [SlidingWindow(last=True)])
    gpt = equipped(tmp_path, SlidingWindow(last=True)).gpt
    with pytest.raises(InputError, match="last=true: it goes with no cached decoding"):
        generate(gpt, torch.arange(5, 9)[None], max_new_tokens=3)


@pytest.mark.parametrize("options", [{"dilated_heads": 5}, {"dilated_layers": 3}])
def test_more_heads_or_layers_than_there_are_cannot_be_dilated(tmp_path, options):
    with pytest.raises(InputError, match="the model has 4 heads in 2 layers: give no more"):
        equipped(tmp_path, SlidingWindow(dilation=2, **options))


def test_it_refuses_a_prefix(tmp_path):
    with pytest.raises(InputError, match="it goes with no prefix"):
        equipped(tmp_path, SlidingWindow(window=4), Prefix(length=3))
    query, key, value = inputs(6)
    with pytest.raises(InputError, match="4 queries, 6 keys: it goes with no prefix"):
        windowed_attention(query[:, :, 2:], key, value, None, 0.0, window=4, sinks=0)


INVALID = {"window": 0, "sinks": -1, "dilation": 0, "dilated_heads": 0, "dilated_layers": -1}


@pytest.mark.parametrize("options", [{name: value} for name, value in INVALID.items()])
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"expected (a window of )?at least 1"):
        SlidingWindow(**options)
