"""AdamW by torch's kernel: it is really used, its state is AdamW's, and a GPU gives the same."""

import copy

import pytest
import torch
from torch import nn

from engine.fast import adamw as module
from engine.fast.adamw import FusedAdamW
from optimizer import AdamW

HYPER = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
SHAPES = [(), (1,), (5,), (3, 7), (1000,), (129, 65)]


def parameters(device="cpu", dtype=torch.float64) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(tensor.to(device, dtype)) for tensor in drawn]


def take_steps(optimizer, steps, *, skip=()) -> list[nn.Parameter]:
    """Gradients that the number of the step decides; (step, parameter) in skip have none."""
    [params] = [group["params"] for group in optimizer.param_groups]
    for t in steps:
        for i, param in enumerate(params):
            random = torch.Generator().manual_seed(100 * t + i)
            drawn = torch.randn(param.shape, generator=random, dtype=torch.float64)
            param.grad = None if (t, i) in skip else drawn.to(param.device, param.dtype)
        optimizer.step()
    return params


def assert_alike(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.detach().cpu().double(), b.detach().double(), **tolerance)


@pytest.fixture
def calls(monkeypatch):
    """How many parameters each call of torch's kernel moves."""
    seen, kernel = [], module.adamw

    def counting(params, *args, **kwargs):
        assert kwargs["fused"]
        seen.append(len(params))
        kernel(params, *args, **kwargs)

    monkeypatch.setattr(module, "adamw", counting)
    return seen


def test_one_call_moves_all_parameters_of_a_group(calls):
    take_steps(FusedAdamW(parameters(), **HYPER), range(3))
    assert calls == [len(SHAPES)] * 3


@pytest.mark.parametrize("stay", [False, True])
def test_gradients_that_stay_are_put_together_once_and_move_alike(calls, stay, monkeypatch):
    made = []

    class Counted(module.Launch):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr(module, "Launch", Counted)
    fused, plain = FusedAdamW(parameters(), **HYPER), AdamW(parameters(), **HYPER)
    fused.gradients_stay = stay
    for optimizer in (fused, plain):
        [params] = [group["params"] for group in optimizer.param_groups]
        for t in range(6):
            for i, param in enumerate(params):
                drawn = torch.full_like(param, 0.1 * (t + 1) - 0.05 * i)
                param.grad = drawn if param.grad is None else param.grad.copy_(drawn)
            if t == 3:  # a resumed run's moments are other tensors
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.step()
    assert_alike(fused.param_groups[0]["params"], plain.param_groups[0]["params"])
    assert len(made) == (2 if stay else 6) and len(calls) == 6


def test_gradients_that_are_given_up_are_let_go():
    optimizer = FusedAdamW(parameters(), **HYPER)
    optimizer.gradients_stay = True
    take_steps(optimizer, range(2))
    assert optimizer.kept
    optimizer.zero_grad()
    assert not optimizer.kept


def test_parameters_whose_steps_differ_are_corrected_for_their_own(calls):
    skip = {(0, 2), (1, 2), (1, 5), (4, 0)}
    found = take_steps(FusedAdamW(parameters(), **HYPER), range(6), skip=skip)
    expected = take_steps(AdamW(parameters(), **HYPER), range(6), skip=skip)
    assert_alike(found, expected, rtol=1e-12, atol=1e-13)
    assert sum(calls) == 6 * len(SHAPES) - len(skip)


def test_what_the_kernel_is_not_made_for_moves_by_the_readable_text(calls):
    steps = FusedAdamW(parameters(), **HYPER, correct_bias=False)
    expected = take_steps(AdamW(parameters(), **HYPER, correct_bias=False), range(3))
    assert_alike(take_steps(steps, range(3)), expected, rtol=0, atol=0)
    assert calls == []


@pytest.mark.parametrize("first, second", [(AdamW, FusedAdamW), (FusedAdamW, AdamW)])
def test_either_goes_on_from_the_others_state(first, second):
    begun = first(parameters(), **HYPER)
    take_steps(begun, range(4))
    [params] = [group["params"] for group in begun.param_groups]
    going_on = second([nn.Parameter(param.detach().clone()) for param in params], **HYPER)
    going_on.load_state_dict(copy.deepcopy(begun.state_dict()))
    expected = take_steps(AdamW(parameters(), **HYPER), range(8))
    assert_alike(take_steps(going_on, range(4, 8)), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_gives_the_same(dtype, calls):
    found = take_steps(FusedAdamW(parameters("cuda", dtype), **HYPER), range(20))
    expected = take_steps(AdamW(parameters(), **HYPER), range(20))
    assert calls == [len(SHAPES)] * 20
    assert_alike(found, expected, rtol=1e-5, atol=1e-6)
