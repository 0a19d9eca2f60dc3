"""All ways of causal attention equal a loop written out by hand, and nothing looks ahead."""

import math
from types import SimpleNamespace

import pytest
import torch

from engine.fast import attention
from engine.fast.attention import blockwise_causal_attention, fused_causal_attention
from modules.attention import CausalSelfAttention, causal_attention
from utils import get_extended_attention_mask

PATHS = [causal_attention, fused_causal_attention, blockwise_causal_attention]
SHAPES = [(1, 1), (6, 6), (1, 6), (3, 7)]  # t queries, s keys; t < s in cached decoding
MASKS = {"none": None, "right": [1, 1, 1, 1, 1, 0, 0], "left": [0, 0, 1, 1, 1, 1, 1]}
LOWEST = torch.finfo(torch.float64).min


def heads(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(t: int, s: int, *, b: int = 2, h: int = 2, k: int = 4) -> tuple[torch.Tensor, ...]:
    return heads(b, h, t, k, seed=1), heads(b, h, s, k, seed=2), heads(b, h, s, k, seed=3)


def real_keys(name: str, s: int, b: int = 2) -> torch.Tensor:
    """(b, s), true at real keys: the first row is padded, the others are not."""
    real = torch.ones(b, s, dtype=torch.bool)
    if MASKS[name]:
        real[0] = torch.tensor(MASKS[name][:s] if name == "right" else MASKS[name][7 - s :])
        real[0, -1 if name == "left" else 0] = True
    return real


def added(real: torch.Tensor, name: str) -> torch.Tensor | None:
    if MASKS[name] is None:
        return None
    return torch.zeros(real.shape, dtype=torch.float64).masked_fill(~real, LOWEST)[:, None, None]


def by_hand(query, key, value, real) -> torch.Tensor:
    """One text, one head and one query at a time; NaN where a query sees no key at all."""
    query, key, value = query.detach(), key.detach(), value.detach()
    (b, h, t, k), s = query.shape, key.shape[2]
    output = torch.full((b, h, t, k), math.nan, dtype=torch.float64)
    for row in range(b):
        for head in range(h):
            for i in range(t):
                seen = [j for j in range(s) if j <= s - t + i and real[row, j]]
                scores = [query[row, head, i] @ key[row, head, j] / math.sqrt(k) for j in seen]
                total = sum(math.exp(score) for score in scores)
                if seen:
                    output[row, head, i] = sum(
                        math.exp(score) / total * value[row, head, j]
                        for score, j in zip(scores, seen, strict=True)
                    )
    return output


@pytest.fixture(params=[2, attention.BLOCK], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", request.param)


@pytest.mark.parametrize("attend", PATHS)
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("t, s", SHAPES)
def test_attention_equals_the_loop_by_hand(attend, padding, t, s):
    query, key, value = inputs(t, s)
    real = real_keys(padding, s)
    expected = by_hand(query, key, value, real)
    found = attend(query, key, value, added(real, padding), 0.0)
    sees = ~expected.isnan()
    assert sees.any() and found.isfinite().all()
    torch.testing.assert_close(found[sees], expected[sees], rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("t, s", SHAPES)
def test_gradients_of_all_paths_agree(padding, t, s):
    real = real_keys(padding, s)
    sees = ~by_hand(*inputs(t, s), real).isnan()
    direction = heads(2, 2, t, 4, seed=4)
    gradients = []
    for attend in PATHS:
        tensors = [tensor.requires_grad_() for tensor in inputs(t, s)]
        output = attend(*tensors, added(real, padding), 0.0)
        gradients.append(torch.autograd.grad((output * direction)[sees].sum(), tensors))
    for plain, *others in zip(*gradients, strict=True):
        assert plain.isfinite().all()
        for other in others:
            torch.testing.assert_close(plain, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attend", PATHS)
def test_a_query_whose_keys_are_all_hidden_stays_finite(attend, dtype):
    query, key, value = (tensor.to(dtype) for tensor in inputs(6, 6))
    mask = torch.zeros(2, 1, 1, 6, dtype=dtype)
    mask[0] = torch.finfo(dtype).min
    output = attend(query, key, value, mask, 0.0)
    assert output.isfinite().all()
    torch.testing.assert_close(
        output[1], attend(query, key, value, None, 0.0)[1], rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("attend", PATHS)
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("j", [1, 4, 7])
def test_a_token_never_influences_earlier_outputs(attend, padding, j):
    module = attention_of(attend=attend)
    x = heads(2, 8, 8).float()
    real = torch.ones(2, 8, dtype=torch.bool)
    real[0, {"none": [], "right": [6, 7], "left": [0, 1]}[padding]] = False
    mask = None if padding == "none" else get_extended_attention_mask(real, torch.float32)
    changed = x.clone()
    changed[:, j] += 3
    before, after = module(x, mask), module(changed, mask)
    earlier = real & (torch.arange(8) < j)
    assert torch.equal(before[earlier], after[earlier])
    assert not torch.allclose(before[1, j:], after[1, j:])


def test_the_fused_path_never_saves_the_matrix_of_scores():
    t, sizes = 128, []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    for attend in (causal_attention, fused_causal_attention):
        tensors = [tensor.requires_grad_() for tensor in inputs(t, t, b=1, h=1)]
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            attend(*tensors, None, 0.0)
        assert (max(sizes) >= t * t) == (attend is causal_attention)


def attention_of(*, attend=None, dropout: float = 0.0, h: int = 2, d: int = 8, seed: int = 0):
    """A CausalSelfAttention, in evaluation mode, from an object that is no GPT2Config."""
    torch.manual_seed(seed)
    config = SimpleNamespace(
        hidden_size=d, num_attention_heads=h, attention_probs_dropout_prob=dropout
    )
    module = CausalSelfAttention(config).eval()
    if attend is not None:
        module.attend = attend
    return module


def kept_by_autograd(attend, t: int) -> int:
    """Numbers that the backward pass will need."""
    sizes = {}

    def note(tensor):
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    tensors = [tensor.requires_grad_() for tensor in inputs(t, t, b=1, h=1)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attend(*tensors, None, 0.0)
    return sum(sizes.values())


def test_blocks_leave_out_what_no_query_sees(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 32)
    plain, blockwise = (
        kept_by_autograd(attend, 256) for attend in (causal_attention, blockwise_causal_attention)
    )
    assert blockwise < 0.65 * plain


@pytest.mark.parametrize(
    "dtype, dropout, in_blocks",
    [(torch.bfloat16, 0.0, True), (torch.float32, 0.1, True), (torch.float32, 0.0, False)],
)
def test_a_cpu_takes_blocks_where_torchs_kernel_is_slow_or_missing(
    dtype, dropout, in_blocks, monkeypatch
):
    calls = []

    def noted(*inputs):
        calls.append(inputs)
        return causal_attention(*inputs)

    monkeypatch.setattr(attention, "causal_attention", noted)
    query, key, value = (x.float() for x in inputs(7, 7, b=1, h=1))
    exact = causal_attention(query, key, value, None, 0.0)
    found = fused_causal_attention(*(x.to(dtype) for x in (query, key, value)), None, dropout)
    assert found.dtype == dtype and bool(calls) == in_blocks
    if not dropout:
        torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0)


def test_transform_projects_and_gives_each_head_its_own_columns():
    module, x = attention_of(h=4), heads(2, 5, 8).float()
    for linear in (module.query, module.key, module.value):
        split, whole = module.transform(x, linear), x @ linear.weight.T + linear.bias
        assert split.shape == (2, 4, 5, 2)
        for head in range(4):
            torch.testing.assert_close(split[:, head], whole[..., 2 * head : 2 * head + 2])


def test_attention_takes_key_query_value_and_joins_the_heads_in_order():
    module = attention_of()
    query, key, value = inputs(6, 6)
    real = real_keys("right", 6)
    joined = module.attention(key, query, value, added(real, "right"))
    expected = by_hand(query, key, value, real)
    assert joined.shape == (2, 6, 8)
    for head in range(2):
        torch.testing.assert_close(joined[..., 4 * head : 4 * head + 4], expected[:, head])


def test_forward_is_transform_then_attention():
    module, x = attention_of(), heads(2, 5, 8).float()
    parts = [module.transform(x, part) for part in (module.key, module.query, module.value)]
    assert torch.equal(module(x, None), module.attention(*parts, None))


@pytest.mark.parametrize("attend", PATHS)
def test_dropout_removes_weights_and_scales_up_the_rest(attend):
    torch.manual_seed(0)
    t = 32
    query, key, _ = inputs(t, t)
    value = torch.eye(t, dtype=torch.float64).expand(2, 2, t, t).contiguous()
    query, key = (torch.cat([part] * (t // 4), dim=-1) for part in (query, key))
    whole, thinned = (attend(query, key, value, None, p) for p in (0.0, 0.25))
    kept = thinned != 0
    torch.testing.assert_close(thinned[kept], whole[kept] / 0.75)
    visible = torch.ones(t, t, dtype=torch.bool).tril().expand_as(kept)
    assert kept[visible].double().mean() == pytest.approx(0.75, abs=0.04)


def test_dropout_acts_in_training_mode_only():
    module, plain, x = attention_of(dropout=0.5), attention_of(), heads(2, 6, 8).float()
    assert torch.equal(module(x, None), plain(x, None))
    module.train()
    assert not torch.allclose(module(x, None), plain(x, None))
    assert not torch.equal(module(x, None), module(x, None))


def test_another_attend_takes_effect_and_learns_the_dropout():
    calls = []

    def values_only(query, key, value, padding_mask, dropout):
        calls.append((padding_mask, dropout))
        return value

    module, x = attention_of(attend=values_only, dropout=0.3), heads(2, 6, 8).float()
    torch.testing.assert_close(module(x, None), module.value(x))
    mask = torch.zeros(2, 1, 1, 6)
    module.train()(x, mask)
    assert calls[0] == (None, 0.0)
    assert calls[1][0] is mask and calls[1][1] == 0.3


def test_both_paths_of_the_module_agree_and_the_lesson_s_is_the_default():
    x = heads(2, 6, 8).float()
    plain, fused = attention_of(), attention_of(attend=fused_causal_attention)
    assert CausalSelfAttention.attend is causal_attention
    torch.testing.assert_close(plain(x, None), fused(x, None), rtol=0, atol=1e-6)
