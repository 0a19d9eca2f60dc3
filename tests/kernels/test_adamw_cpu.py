"""The compiled AdamW does what the readable one does, and steps aside where it cannot."""

import shutil
import subprocess
import warnings

import pytest
import torch

from kernels import adamw, adamw_cpu
from optimizer import AdamW, update_each

HYPER = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "decay": 0.02}
needs_compiler = pytest.mark.skipif(not adamw_cpu.is_available(), reason="needs a C compiler")


def made(*shapes, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """(param, grad, exp_avg, exp_avg_sq) of each shape."""
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(4, *shape, generator=random) for shape in shapes]
    return [(x[0], x[1], x[2], x[3].abs_()) for x in drawn]


@pytest.fixture
def forgetful():
    """What was tried before is forgotten, before and after."""
    adamw._tried.cache_clear()
    adamw_cpu.library.cache_clear()
    yield
    adamw._tried.cache_clear()
    adamw_cpu.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_the_kernel_moves_all_as_the_formula_does(threads, decay):
    shapes = [(), (1,), (0,), (5,), (3, 7), (1000,), (129, 65)]
    found, expected, hyper = made(*shapes), made(*shapes), HYPER | {"decay": decay}
    step_sizes = [0.1 * i for i in range(len(shapes))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        adamw_cpu.update_all(found, step_sizes, **hyper)
    finally:
        torch.set_num_threads(before)
    update_each(expected, step_sizes, **hyper)
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
        assert torch.equal(a[1], b[1])  # the gradient


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit():
    results = []
    for threads in (1, 2, 5):
        tensors, before = made((1001,), (37, 11)), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            adamw_cpu.update_all(tensors, [0.1, 0.2], **HYPER)
        finally:
            torch.set_num_threads(before)
        results.append(torch.cat([x.flatten() for of_one in tensors for x in of_one]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_gradient_shows_in_the_weights(value):
    [(param, grad, *moments)] = made((50,))
    grad[17] = value
    adamw_cpu.update_all([(param, grad, *moments)], [0.1], **HYPER)
    assert param.isnan().nonzero().tolist() == [[17]]


def steps_of(shapes, *, seeds=range(4)) -> list[torch.Tensor]:
    params = [torch.nn.Parameter(param) for param, *_ in made(*shapes)]
    optimizer = AdamW(params, lr=0.05, weight_decay=0.1)
    for seed in seeds:
        for param, (_, grad, *_) in zip(params, made(*shapes, seed=seed), strict=True):
            param.grad = grad
        optimizer.step()
    return params


@needs_compiler
def test_large_models_use_it_and_get_the_plain_numbers(monkeypatch, forgetful):
    calls, update_all = [], adamw_cpu.update_all

    def counted(*args, **hyper):
        calls.append(args)
        update_all(*args, **hyper)

    monkeypatch.setattr(adamw_cpu, "update_all", counted)
    shapes = [(300, 20), (7,)]
    plain = steps_of(shapes)
    assert not calls
    monkeypatch.setattr(adamw, "FEWEST", 6000)
    fast = steps_of(shapes)
    assert len(calls) == 1 + 4  # once to show that it can
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["float64", "transposed", "bfloat16"])
def test_tensors_of_another_kind_are_left_to_the_formula(monkeypatch, what):
    monkeypatch.setattr(adamw, "FEWEST", 1)
    [(param, *others)] = made((4, 5))
    change = {"float64": torch.Tensor.double, "bfloat16": torch.Tensor.bfloat16}
    other = change.get(what, lambda x: x.T.contiguous().T)(param)
    assert adamw.find_kernel([(other, *others)], update_each) is None
    fits = adamw.find_kernel([(param, *others)], update_each)
    assert (fits is None) != adamw_cpu.is_available()


def test_without_a_compiler_nothing_is_said(monkeypatch, forgetful):
    monkeypatch.setattr(adamw, "FEWEST", 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adamw.find_kernel(made((4,)), update_each) is None


def wrong_numbers(monkeypatch, tmp_path):
    source = adamw_cpu.SOURCE.read_text(encoding="utf-8").replace("sqrtf(v) +", "sqrtf(v) + 2 *")
    (tmp_path / "adamw.c").write_text(source, encoding="utf-8")
    monkeypatch.setattr(adamw_cpu, "SOURCE", tmp_path / "adamw.c")


def no_c_at_all(monkeypatch, tmp_path):
    (tmp_path / "adamw.c").write_text("this is not C", encoding="utf-8")
    monkeypatch.setattr(adamw_cpu, "SOURCE", tmp_path / "adamw.c")


def a_broken_compiler(monkeypatch, tmp_path):
    def fail(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr="ld: cannot find -lm")

    monkeypatch.setattr(subprocess, "run", fail)


@needs_compiler
@pytest.mark.parametrize("breakage", [wrong_numbers, no_c_at_all, a_broken_compiler])
def test_a_kernel_that_fails_is_reported_once_and_left_alone(
    monkeypatch, tmp_path, forgetful, breakage
):
    breakage(monkeypatch, tmp_path)
    monkeypatch.setattr(adamw, "FEWEST", 1)
    with pytest.warns(UserWarning, match="goes on without its cpu kernel"):
        assert adamw.find_kernel(made((4,)), update_each) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adamw.find_kernel(made((4,)), update_each) is None
