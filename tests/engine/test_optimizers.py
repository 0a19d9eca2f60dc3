"""Weight decay is for matrices and embeddings; a run's optimizer spares all vectors."""

import pytest
import torch
from tiny_run import Averager, tiny_classifier, weights

from engine.errors import InputError
from engine.extension import load_extensions, techniques
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


def brings_an_optimizer(name: str) -> bool:
    [extension] = load_extensions([name])
    return extension.make_optimizer(tiny_classifier(), LR, 0.0) is not None


NAMES = [name for name in techniques() if not name.startswith("log_") and brings_an_optimizer(name)]


def take_step(model, optimizer, extension) -> None:
    optimizer.zero_grad()
    tokens, mask = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.long)
    logits = model(tokens, mask)
    labels = torch.zeros(2, dtype=torch.long)
    extension.before_backward(model, {"labels": labels, "attention_mask": mask})
    logits.square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizers_of_techniques_leave_vectors_alone_too(name):
    """By a step from the same start, with decay and without, after one at a rate of 0: soap's
    first step only looks at the gradient."""
    moved = []
    for decay in (DECAY, 0.0):
        model = tiny_classifier()
        [extension] = load_extensions([name])
        optimizer = make_optimizer(model, options(weight_decay=decay), [extension])
        rates = [group["lr"] for group in optimizer.param_groups]
        for factor in (0, 1):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * rate
            take_step(model, optimizer, extension)
        moved.append(weights(model))
    unlike = {n for n, tensor in moved[0].items() if not torch.equal(tensor, moved[1][n])}
    assert unlike == {n for n, tensor in moved[0].items() if tensor.dim() > 1}


def test_some_techniques_bring_an_optimizer():
    assert {"soap", "muon", "kfac", "llrd"} <= set(NAMES)


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


def test_two_optimizers_are_refused():
    with pytest.raises(InputError, match="2 extensions bring an optimizer: choose one"):
        make_optimizer(tiny_classifier(), options(), load_extensions(["soap", "muon"]))
