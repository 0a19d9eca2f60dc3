"""FlashAttention against dense attention; it keeps nothing of t × t, and drops the same twice."""

import functools
import sys

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from test_sliding_window import LargestTensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from extensions.flash_attention import (
    FlashAttention,
    Tiles,
    flash_attention,
    passes,
    tiled_backward,
    tiled_forward,
    uniform,
)
from extensions.prefix import Prefix
from extensions.sliding_window import SlidingWindow
from models.gpt2 import GPT2Model
from modules.attention import causal_attention
from utils import get_extended_attention_mask

TRIED = {"flash_attention": Tried(varied=["block=16,kernel=torch"])}

SHAPES = [(1, 1, 4), (7, 7, 16), (12, 12, 4), (13, 13, 5), (6, 11, 4), (1, 9, 4), (5, 20, 8)]


def inputs(t: int, s: int | None = None, *, b: int = 2, k: int = 8, dtype=torch.float64):
    torch.manual_seed(t)
    shapes = [(b, 3, t, k), (b, 3, s or t, k), (b, 3, s or t, k)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def dense(query, key, value, *, hidden=None, lengths=None, kept=1.0):
    """The definition, with all weights at once; a query that sees no key gets 0."""
    t, s = query.shape[-2], key.shape[-2]
    i, j = torch.arange(s - t, s)[:, None], torch.arange(s)
    seen = j <= i
    if hidden is not None:
        seen = seen & ~hidden[:, None, None]
    if lengths is not None:
        seen = seen & (i < lengths[:, None, None, None])
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1) * seen
    return weights * kept @ value


def with_gradients(out, leaves, grad):
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


# -- the tiles in PyTorch ----------------------------------------------------------------------


@pytest.mark.parametrize("t, s, block", SHAPES)
@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_causal_attention_forward_and_backward(t, s, block, side, dtype):
    """At every real position; also where t is no multiple of the block, and with earlier keys."""
    leaves = inputs(t, s, dtype=dtype)
    mask, real = None, torch.ones(2, s, dtype=torch.bool)
    if side != "none":
        real[0, -(s // 3) :] = s < 3
        real = real.flip(1) if side == "left" else real
        mask = get_extended_attention_mask(real.long(), dtype)
    grad = torch.randn_like(leaves[0]) * real[:, None, s - t :, None]
    results = []
    for attend in (functools.partial(flash_attention, block=block), causal_attention):
        out, *gradients = with_gradients(attend(*leaves, mask, 0.0), leaves, grad)
        results.append([out * real[:, None, s - t :, None], *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_finite_differences(dropout):
    """Also of queries that see no key, beyond a row's length, and with dropout."""
    leaves = inputs(5, 6, k=2)
    mask = get_extended_attention_mask(torch.tensor([[0] * 3 + [1] * 3, [1] * 6]), torch.float64)

    def attend(*leaves):
        torch.manual_seed(5)
        lengths = torch.tensor([6, 4])
        return flash_attention(*leaves, mask, dropout, block=4, lengths=lengths)

    assert torch.autograd.gradcheck(attend, leaves)


def test_what_it_saves_beside_the_output_is_the_log_sum_exp():
    query, key, value = (x.detach() for x in inputs(13))
    _, found = tiled_forward(query, key, value, Tiles(13, 13, 5))
    scores = query @ key.mT / 8**0.5
    future = torch.ones(13, 13, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(future, -torch.inf).logsumexp(dim=-1)
    torch.testing.assert_close(found, expected)


def test_large_scores_do_not_overflow():
    query, key, value = (x.detach() for x in inputs(9))
    found = flash_attention(1e6 * query, 1e6 * key, value, None, 0.0, block=4)
    torch.testing.assert_close(found, dense(1e6 * query, 1e6 * key, value))


def test_a_query_that_sees_no_key_gets_0():
    leaves = inputs(9)
    mask = get_extended_attention_mask(torch.tensor([[0] * 5 + [1] * 4, [0] * 9]), torch.float64)
    out, *gradients = with_gradients(
        flash_attention(*leaves, mask, 0.0, block=4), leaves, torch.ones(2, 3, 9, 8)
    )
    assert not out[0, :, :5].any() and not out[1].any() and out[0, :, 5:].all()
    for gradient in gradients:
        assert gradient.isfinite().all() and not gradient[1].any()


def test_lengths_leave_out_what_follows_a_row():
    leaves, lengths = inputs(13), torch.tensor([6, 13])
    grad = torch.randn_like(leaves[0])
    found = flash_attention(*leaves, None, 0.0, block=4, lengths=lengths)
    expected = dense(*leaves, lengths=lengths)
    for one, two in zip(
        with_gradients(found, leaves, grad), with_gradients(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(one, two)
    assert not found[0, :, 6:].any()


class Products(TorchDispatchMode):
    """Counts the matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


def test_tiles_in_the_future_are_left_out():
    """Two products forward and five backward, in 4 · 5 / 2 of 16 tiles."""
    query, key, value = inputs(16)
    with Products() as note:
        flash_attention(query, key, value, None, 0.0, block=4).sum().backward()
    assert note.count == 7 * 10


def memory(attend, t: int) -> dict:
    """Numbers saved for the backward pass, tensor by tensor, and in the largest tensor made."""
    query, key, value = inputs(t, b=1, k=4, dtype=torch.float32)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks
    with LargestTensor() as note, hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        attend(query, key, value, None, 0.1).sum().backward()
    return {"saved": sorted(saved), "largest": note.largest}


def test_memory_grows_linearly_with_the_text():
    attend = functools.partial(flash_attention, block=32)
    for t in (256, 512, 1024):
        found = memory(attend, t)
        assert found["saved"] == [3 * t] + 4 * [3 * t * 4]  # L; Q, K, V and O
        assert found["largest"] <= 3 * 32 * t


def without_recomputation(query, key, value, padding_mask, dropout):
    """Tiles whose backward pass is autograd's, which keeps every one of them."""
    seed = torch.tensor([0]) if dropout else None
    tiles = Tiles(query.shape[2], key.shape[2], 32, dropout=dropout, seed=seed)
    return tiled_forward(query, key, value, tiles)[0]


@pytest.mark.parametrize("attend", [causal_attention, without_recomputation])
def test_an_attention_that_keeps_the_weights_would_be_seen(attend):
    small, large = (sum(memory(attend, t)["saved"]) for t in (256, 512))
    assert large > 3 * small > 3 * 256 * 256


def kept_weights(attend, t: int, *, p: float, seed: int) -> torch.Tensor:
    """Z (b, h, t, t), what the weights were multiplied by, read off with values that are unit."""
    query, key, _ = (x.detach() for x in inputs(t, k=t))
    unit = torch.eye(t, dtype=query.dtype).expand(2, 3, t, t)
    torch.manual_seed(seed)
    return attend(query, key, unit, None, p) / dense(query, key, unit)


def test_dropout_drops_its_share_everywhere_and_scales_the_rest():
    attend, t, p = functools.partial(flash_attention, block=16), 64, 0.3
    below = torch.ones(t, t, dtype=torch.bool).tril()
    kept = kept_weights(attend, t, p=p, seed=0)[..., below]  # (b, h, t · (t + 1) / 2)
    dropped = kept < 0.5
    torch.testing.assert_close(kept[~dropped], torch.full_like(kept[~dropped], 1 / (1 - p)))
    share = dropped.double().mean(dim=-1)
    assert (share - p).abs().max() < 4 * (p * (1 - p) / below.sum()) ** 0.5
    heads = dropped.flatten(0, 1).double()
    assert (torch.corrcoef(heads) - torch.eye(6)).abs().max() < 4 / below.sum() ** 0.5
    corner = kept_weights(attend, t, p=p, seed=0)[0, 0, 48:]
    first, second = corner[:, :16] < 0.5, corner[:, 16:32] < 0.5
    assert (first != second).double().mean() > 0.2  # one tile's draws are not another's


def test_its_draws_are_the_high_bits_of_splitmix64():
    """Of the first numbers from the seed 1234567, as programs in many languages list them."""
    listed = [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]
    found = uniform(torch.tensor([1234567]), torch.arange(1, 6))
    assert found.tolist() == [(number >> 40) / 2**24 for number in listed]


def test_dropout_is_the_same_forward_and_backward():
    t, p = 21, 0.25
    attend = functools.partial(flash_attention, block=8)
    kept = torch.nan_to_num(kept_weights(attend, t, p=p, seed=3))
    leaves = inputs(t)
    grad = torch.randn_like(leaves[0])
    torch.manual_seed(3)
    found = with_gradients(attend(*leaves, None, p), leaves, grad)
    expected = with_gradients(dense(*leaves, kept=kept), leaves, grad)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_dropout_follows_torch_s_random_state_and_without_it_nothing_is_drawn():
    query, key, value = (x.detach() for x in inputs(12))
    attend = functools.partial(flash_attention, query, key, value, None, block=4)
    torch.manual_seed(1)
    first, second = attend(0.5), attend(0.5)
    torch.manual_seed(1)
    assert torch.equal(attend(0.5), first) and not torch.equal(first, second)
    state = torch.get_rng_state()
    attend(0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not attend(1.0).any()


def test_under_autocast_sums_are_float32_and_types_may_differ():
    """As with a prefix, whose keys are float32 beside queries in bfloat16."""
    query, key, value = inputs(13, dtype=torch.float32)
    half = [x.detach().bfloat16() for x in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        found = flash_attention(half[0], key, value, None, 0.0, block=4)
    expected = flash_attention(*(x.float() for x in half), None, 0.0, block=4)
    assert torch.equal(found, expected.bfloat16())
    gradients = torch.autograd.grad(found.float().square().sum(), (key, value))
    expected = torch.autograd.grad(dense(query, key, value).square().sum(), (key, value))
    for one, two in zip(gradients, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, atol=0.05, rtol=0.05)


def test_a_second_derivative_is_refused():
    query, key, value = inputs(5)
    out = flash_attention(query, key, value, None, 0.0, block=4)
    [gradient] = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# -- in a model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("flash") / "model")


def model_with(folder, *extensions):
    model = torch.nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    torch.manual_seed(2)
    apply_extensions(model, extensions)
    return model.gpt


TOKENS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("others", [[], [Prefix(length=3)]])
def test_a_model_s_outputs_are_the_same_with_it(folder, side, others):
    """A prefix, too, in whichever order they are named."""
    mask = torch.ones_like(TOKENS)
    if side != "none":
        mask[0, -3:] = 0
    mask = mask.flip(1) if side == "left" else mask
    flash = FlashAttention(block=16)
    with torch.no_grad():
        expected = model_with(folder, *others)(TOKENS, mask)["last_hidden_state"]
        for extensions in ([flash, *others], [*others, flash]):
            model = model_with(folder, *extensions)
            found = model(TOKENS, mask)["last_hidden_state"]
            torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])
    attention = model.gpt_layers[1].self_attention
    place = attention.prefix if others else attention
    assert place.attend.func is flash_attention


@pytest.mark.parametrize("others", [[], [Prefix(length=3)]])
def test_cached_and_uncached_decoding_agree_with_dense_attention(folder, others):
    mask = torch.tensor([[1] * 20, [1] * 5 + [0] * 15])
    texts = [
        generate(model_with(folder, *extensions), TOKENS, mask, **options)
        for extensions in (others, [*others, FlashAttention(block=16)])
        for options in (
            {"max_new_tokens": 15, "temperature": 0, "use_cache": cached}
            for cached in (True, False)
        )
    ]
    for rows in zip(*texts, strict=True):
        assert all(torch.equal(row, rows[0]) for row in rows)


@pytest.mark.parametrize("other", [SlidingWindow(window=4), FlashAttention()])
def test_another_attention_is_refused(folder, other):
    with pytest.raises(InputError, match="other attention"):
        model_with(folder, other, FlashAttention())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block": 48}, "block=48: expected a power of two"),
        ({"block": 8}, "block=8: expected a power of two, at least 16"),
        ({"kernel": "cuda"}, "kernel=cuda: expected auto, torch or triton"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        FlashAttention(**options)


def test_more_queries_than_keys_are_refused():
    query, key, value = inputs(6)
    with pytest.raises(ValueError, match="6 queries, 4 keys"):
        flash_attention(query, key[:, :, :4], value[:, :, :4], None, 0.0, block=4)


def test_the_requested_kernel_is_used_or_refused_with_the_reason(monkeypatch):
    query = torch.zeros(1, 1, 4, 8)
    assert passes("auto", query) == passes("torch", query) == (tiled_forward, tiled_backward)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="needs a GPU: give kernel=auto"):
        passes("triton", query)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InputError, match=r"heads of 8 in torch.float64, expected at most 128"):
        passes("triton", query.double())
    with pytest.raises(InputError, match="heads of 129"):
        passes("triton", torch.zeros(1, 1, 4, 129))
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match=r"kernel=triton needs triton: pip install triton$"):
        passes("triton", query)
