"""AdamW follows its formula step by step, no relative passes for it, and torch's rules hold."""

import copy
import io
import sys

import numpy as np
import pytest
import torch

import optimizer_test
from engine.fast.adamw import FusedAdamW
from optimizer import AdamW

HYPER = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
STEPS = 12


@pytest.fixture(params=[AdamW, FusedAdamW], ids=["readable", "fused"], autouse=True)
def either(request, monkeypatch):
    """Each claim of this file is about both: AdamW here is one after the other."""
    monkeypatch.setattr(sys.modules[__name__], "AdamW", request.param)


def as_documented(theta, g, m, v, *, t, lr, betas, eps, weight_decay, correct_bias=True):
    """The formula at the head of optimizer.py, in NumPy."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    rate = lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) if correct_bias else lr
    theta = theta - rate * m / (np.sqrt(v) + eps)
    return theta - lr * weight_decay * theta, m, v


def with_eps_after_correction(theta, g, m, v, *, t, lr, betas, eps, weight_decay):
    """As in torch.optim: ε is added to √(v / (1 − β₂ᵗ))."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    step = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    theta = theta - lr * step
    return theta - lr * weight_decay * theta, m, v


def with_decay_before_the_update(theta, g, m, v, *, lr, weight_decay, **others):
    decayed = theta - lr * weight_decay * theta
    return as_documented(decayed, g, m, v, lr=lr, weight_decay=0.0, **others)


def with_decay_of_the_old_weights(theta, g, m, v, *, lr, weight_decay, **others):
    moved, m, v = as_documented(theta, g, m, v, lr=lr, weight_decay=0.0, **others)
    return moved - lr * weight_decay * theta, m, v


def with_decay_in_the_gradient(theta, g, m, v, *, weight_decay, **others):
    """L2 regularisation, which is not decoupled."""
    return as_documented(theta, g + weight_decay * theta, m, v, weight_decay=0.0, **others)


def with_decay_by_the_corrected_rate(theta, g, m, v, *, t, lr, betas, weight_decay, **others):
    moved, m, v = as_documented(theta, g, m, v, t=t, lr=lr, betas=betas, weight_decay=0.0, **others)
    rate = lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    return moved - rate * weight_decay * moved, m, v


def without_decay(theta, g, m, v, *, weight_decay, **others):
    return as_documented(theta, g, m, v, weight_decay=0.0, **others)


def without_correction(theta, g, m, v, **others):
    return as_documented(theta, g, m, v, correct_bias=False, **others)


def with_eps_under_the_root(theta, g, m, v, *, t, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    theta = theta - lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / np.sqrt(v + eps)
    return theta - lr * weight_decay * theta, m, v


WRONG = [
    with_eps_after_correction,
    with_decay_before_the_update,
    with_decay_of_the_old_weights,
    with_decay_in_the_gradient,
    with_decay_by_the_corrected_rate,
    without_decay,
    without_correction,
    with_eps_under_the_root,
]


def numbers(*shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def by_formula(rule, theta, *, steps: int = STEPS, **hyper) -> list[np.ndarray]:
    """The weights after each step; the gradients are those of `by_optimizer`."""
    m, v, found = np.zeros_like(theta), np.zeros_like(theta), []
    for t in range(1, steps + 1):
        theta, m, v = rule(theta, numbers(*theta.shape, seed=t), m, v, t=t, **hyper)
        found.append(theta)
    return found


def by_optimizer(optimizer_class, theta, *, steps: int = STEPS, **hyper) -> list[np.ndarray]:
    parameter = torch.nn.Parameter(torch.tensor(theta))
    steps_taken, found = optimizer_class([parameter], **hyper), []
    for t in range(1, steps + 1):
        parameter.grad = torch.tensor(numbers(*theta.shape, seed=t), dtype=parameter.dtype)
        steps_taken.step()
        found.append(parameter.detach().numpy().copy())
    return found


def distance(found, expected) -> float:
    return max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"correct_bias": False},
        {"weight_decay": 0.0},
        {"betas": (0.0, 0.999)},
        {"betas": (0.3, 0.0)},
        {"eps": 0.0, "lr": 1.0},
        {"lr": 0.0},
    ],
)
def test_adamw_matches_the_formula_step_by_step(change):
    theta, hyper = numbers(3, 4, seed=0), HYPER | change
    found = by_optimizer(AdamW, theta, **hyper)
    assert distance(found, by_formula(as_documented, theta, **hyper)) < 1e-13


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_wrong_variants_are_told_apart(rule):
    theta = numbers(3, 4, seed=0)
    found = by_optimizer(AdamW, theta, **HYPER)
    assert distance(found, by_formula(rule, theta, **HYPER)) > 1e-4
    assert distance(found[:1], by_formula(rule, theta, steps=1, **HYPER)) > 1e-6


def test_the_defaults_are_the_courses():
    theta = numbers(5, seed=0)
    course = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}
    expected = by_formula(as_documented, theta, **course)
    assert distance(by_optimizer(AdamW, theta), expected) < 1e-14


def test_without_decay_and_with_a_tiny_eps_it_is_torchs_adamw():
    theta = numbers(3, 4, seed=0)
    hyper = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-14, "weight_decay": 0.0}
    theirs = by_optimizer(torch.optim.AdamW, theta, **hyper)
    assert distance(by_optimizer(AdamW, theta, **hyper), theirs) < 1e-10


@pytest.mark.parametrize("what", ["parameter", "gradient", "expanded gradient"])
def test_memory_in_another_order_changes_nothing(what):
    theta, gradient = numbers(4, 3, seed=0), torch.tensor(numbers(4, 3, seed=1))
    parameter = torch.nn.Parameter(torch.tensor(theta))
    if what == "parameter":
        parameter = torch.nn.Parameter(torch.tensor(theta.T.copy()).T)
        assert not parameter.is_contiguous()
    elif what == "gradient":
        gradient = gradient.T.contiguous().T
    else:
        gradient = gradient[:, :1].expand(4, 3)
    steps = AdamW([parameter], **HYPER)
    m = v = np.zeros_like(theta)
    for t in (1, 2, 3):
        parameter.grad = gradient
        steps.step()
        theta, m, v = as_documented(theta, gradient.numpy(), m, v, t=t, **HYPER)
        assert np.abs(parameter.detach().numpy() - theta).max() < 1e-13


def test_moments_that_were_made_before_change_no_number():
    theta = numbers(3, 4, seed=0)

    class Prepared(AdamW):
        def __init__(self, *args, **hyper):
            super().__init__(*args, **hyper)
            self.init_state()

    assert (
        distance(by_optimizer(Prepared, theta, **HYPER), by_optimizer(AdamW, theta, **HYPER)) == 0
    )


def test_a_parameter_without_a_gradient_stays_where_it_is_though_its_moments_are_there():
    moved, still, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    steps = AdamW([moved, still, frozen], weight_decay=0.1)
    steps.init_state()
    assert steps.state.keys() == {moved, still} and steps.state[still]["step"] == 0
    moved.grad = torch.ones(2)
    steps.step()
    assert steps.state[moved]["step"] == 1 and steps.state[still]["step"] == 0
    assert still.tolist() == frozen.tolist() == [1, 1] and moved.max() < 1


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3)])
def test_parameters_of_any_shape_are_updated(shape):
    found = by_optimizer(AdamW, numbers(*shape, seed=0), **HYPER)
    expected = by_formula(as_documented, numbers(*shape, seed=0), **HYPER)
    assert found[-1].shape == shape
    np.testing.assert_allclose(found[-1], expected[-1], rtol=0, atol=1e-13)


def test_groups_have_hyper_parameters_and_steps_of_their_own():
    first, second, late = (torch.nn.Parameter(torch.tensor(numbers(4, seed=i))) for i in range(3))
    of_second = {"lr": 0.2, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.0}
    steps = AdamW([{"params": [first]}, {"params": [second], **of_second}], **HYPER)
    for t in range(1, STEPS + 1):
        if t == 5:
            steps.add_param_group({"params": [late], "lr": 0.3, "correct_bias": False})
        for parameter in (first, second, late):
            parameter.grad = torch.tensor(
                numbers(4, seed=t if t < 5 or parameter is not late else t - 4)
            )
        steps.step()
    rules = {
        0: (first, STEPS, HYPER),
        1: (second, STEPS, of_second),
        2: (late, STEPS - 4, HYPER | {"lr": 0.3, "correct_bias": False}),
    }
    for seed, (parameter, count, hyper) in rules.items():
        expected = by_formula(as_documented, numbers(4, seed=seed), steps=count, **hyper)
        assert np.abs(parameter.detach().numpy() - expected[-1]).max() < 1e-13


def test_a_learning_rate_changed_between_steps_takes_effect():
    theta, m, v = numbers(4, seed=0), np.zeros(4), np.zeros(4)
    parameter = torch.nn.Parameter(torch.tensor(theta))
    steps = AdamW([parameter], **HYPER)
    for t, lr in enumerate([0.1, 0.02, 0.5, 0.0, 0.1], start=1):
        steps.param_groups[0]["lr"] = lr
        parameter.grad = torch.tensor(numbers(4, seed=t))
        steps.step()
        theta, m, v = as_documented(theta, numbers(4, seed=t), m, v, t=t, **HYPER | {"lr": lr})
        assert np.abs(parameter.detach().numpy() - theta).max() < 1e-13


# -- the rules of torch.optim ------------------------------------------------------------------


def trained(steps: AdamW, parameter, seeds) -> torch.Tensor:
    for seed in seeds:
        parameter.grad = torch.tensor(numbers(3, 4, seed=seed), dtype=torch.float32)
        steps.step()
    return parameter.detach().clone()


def through_bytes(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_bytes])
def test_a_saved_state_goes_on_bit_by_bit(copied):
    first = torch.nn.Parameter(torch.tensor(numbers(3, 4, seed=0), dtype=torch.float32))
    steps = AdamW([first], **HYPER)
    trained(steps, first, range(5))
    state = copied(steps.state_dict())
    second = torch.nn.Parameter(first.detach().clone())
    again = AdamW([second], lr=99.0)
    again.load_state_dict(state)
    assert torch.equal(trained(steps, first, range(5, 9)), trained(again, second, range(5, 9)))


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        AdamW(embedding.parameters()).step()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_gradient_shows_in_the_weights_as_in_torch(value):
    gradient = torch.tensor([1.0, value, 2.0])
    found = []
    for optimizer_class in (AdamW, torch.optim.AdamW):
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = gradient.clone()
        optimizer_class([parameter]).step()
        found.append(parameter.isnan().tolist())
    assert found[0] == found[1] == [False, True, False]


def test_a_closure_runs_with_gradients_and_its_loss_is_returned():
    parameter = torch.nn.Parameter(torch.ones(2))
    steps = AdamW([parameter])

    def closure():
        assert torch.is_grad_enabled()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert steps.step(closure).item() == 2.0
    assert (parameter < 1).all() and steps.step() is None


def test_parameters_without_a_gradient_are_untouched_and_have_no_state():
    used, unused, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    steps = AdamW([used, unused, frozen], **HYPER)
    for _ in range(3):
        steps.zero_grad()
        used.sum().backward()
        steps.step()
    assert list(steps.state) == [used] and (used != 1).all()
    assert (unused == 1).all() and (frozen == 1).all()
    assert unused.grad is None and steps.state[used].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_gradients_are_left_as_they_were():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    AdamW([parameter], **HYPER).step()
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "change",
    [
        {"lr": -1e-9},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"eps": -1e-9},
        {"weight_decay": -0.1},
    ],
)
def test_invalid_hyper_parameters_are_refused_with_their_value(change):
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=name) as caught:
        AdamW([torch.nn.Parameter(torch.ones(1))], **change)
    assert str(value) in str(caught.value)


# -- optimizer_test.py -------------------------------------------------------------------------

COURSE = np.array([[0.5548, 0.8667, 0.0729], [-0.4472, -0.2951, -0.2717]])


def train_by_formula() -> np.ndarray:
    """The program's training in NumPy and float64; the gradient is 2 (W x − y) xᵀ."""
    weight = optimizer_test.first_layer().weight.detach().double().numpy().copy()
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    rng = np.random.default_rng(optimizer_test.SEED)
    hyper = {"lr": optimizer_test.LR, "betas": (0.9, 0.999), "eps": 1e-6}
    hyper["weight_decay"] = optimizer_test.WEIGHT_DECAY
    for t in range(1, optimizer_test.STEPS + 1):
        x, y = optimizer_test.draw(rng)
        weight, m, v = as_documented(weight, 2 * np.outer(weight @ x - y, x), m, v, t=t, **hyper)
    return weight


def test_the_program_passes_and_its_reference_is_the_formulas(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["optimizer_test.py"])
    optimizer_test.main()
    assert capsys.readouterr().out.endswith("Optimizer test passed!\n")
    reference = np.load(optimizer_test.REFERENCE)
    np.testing.assert_allclose(reference, train_by_formula(), rtol=0, atol=1e-7)
    np.testing.assert_allclose(reference, COURSE, rtol=0, atol=6e-5)


def test_the_program_fails_for_another_optimizer(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["optimizer_test.py"])
    monkeypatch.setattr(optimizer_test.train, "__defaults__", (torch.optim.SGD,))
    with pytest.raises(SystemExit) as stop:
        optimizer_test.main()
    assert "differs from the formula" in str(stop.value.code)


def test_the_reference_has_the_weights_dtype_as_the_courses_check_needs():
    """The course's program compares with allclose, which refuses two dtypes."""
    reference = torch.tensor(np.load(optimizer_test.REFERENCE))
    assert torch.allclose(reference, optimizer_test.train(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("word, code", [("--help", 0), ("--wirte", 2)])
def test_help_and_a_wrong_flag_do_not_run_the_test(monkeypatch, capsys, word, code):
    monkeypatch.setattr(sys, "argv", ["optimizer_test.py", word])
    with pytest.raises(SystemExit) as stop:
        optimizer_test.main()
    assert stop.value.code == code and "Optimizer test" not in capsys.readouterr().out
