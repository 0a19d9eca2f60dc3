"""Weight decay is for matrices and embeddings; a run's optimizer spares all vectors."""

import pytest
import torch
from tiny_run import Averager, weights

from engine.fast.adamw import FusedAdamW
from engine.optimizers import make_optimizer, spare_vectors
from engine.options import FitOptions

LR, DECAY = 0.1, 0.5


def options(**changes) -> FitOptions:
    return FitOptions(epochs=1, metric="none", **{"lr": LR, "weight_decay": DECAY} | changes)


def after_a_step_without_gradient(model, optimizer) -> dict:
    """Each parameter's new length over its old one; only decay moves it."""
    model.head.bias.data.fill_(2.0)
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {n: float(p.detach().norm() / before[n].norm()) for n, p in model.named_parameters()}


def test_matrices_and_embeddings_decay_and_biases_do_not():
    model = Averager()
    lengths = after_a_step_without_gradient(model, make_optimizer(model, options(), []))
    expected = {"gpt.weight": 1 - LR * DECAY, "head.weight": 1 - LR * DECAY, "head.bias": 1.0}
    assert lengths == pytest.approx(expected)


def test_groups_that_do_not_decay_or_have_no_vectors_stay_as_they_are():
    model = Averager()
    for parameters, decay in ((model.parameters(), 0.0), ([model.head.weight], DECAY)):
        optimizer = FusedAdamW(list(parameters), lr=LR, weight_decay=decay)
        groups = [list(group["params"]) for group in optimizer.param_groups]
        spare_vectors(optimizer)
        assert [list(group["params"]) for group in optimizer.param_groups] == groups


def test_a_new_group_has_the_options_and_names_of_the_old_one():
    model = Averager()
    named = [{"params": list(model.named_parameters()), "lr": 0.3, "betas": (0.5, 0.6)}]
    optimizer = FusedAdamW(named, weight_decay=DECAY)
    spare_vectors(optimizer)
    first, second = optimizer.param_groups
    assert first["param_names"] == ["gpt.weight", "head.weight"]
    assert second["param_names"] == ["head.bias"] and second["weight_decay"] == 0.0
    for group in (first, second):
        assert (group["lr"], group["betas"]) == (0.3, (0.5, 0.6))


def test_betas_are_an_option_and_the_course_s_by_default():
    for betas, how in (((0.9, 0.999), {}), ((0.9, 0.95), {"betas": (0.9, 0.95)})):
        optimizer = make_optimizer(Averager(), options(**how), [])
        assert all(group["betas"] == betas for group in optimizer.param_groups)
