"""The optimizers that techniques bring spare vectors as every run's does; only one is brought."""

import pytest
import torch
from technique_cases import those_whose
from tiny_run import tiny_classifier, weights

from engine.errors import InputError
from engine.extension import load_extensions
from engine.optimizers import make_optimizer
from engine.options import FitOptions

LR, DECAY = 0.1, 0.5


def options(weight_decay: float = DECAY) -> FitOptions:
    return FitOptions(epochs=1, lr=LR, metric="none", weight_decay=weight_decay)


def brings_an_optimizer(extension) -> bool:
    return extension.make_optimizer(tiny_classifier(), LR, 0.0) is not None


NAMES = those_whose(brings_an_optimizer)


def take_step(model, optimizer, extension) -> None:
    optimizer.zero_grad()
    tokens, mask = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.long)
    logits = model(tokens, mask)
    labels = torch.zeros(2, dtype=torch.long)
    batch = {"token_ids": tokens, "attention_mask": mask, "labels": labels}
    extension.before_backward(model, batch)
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
        optimizer = make_optimizer(model, options(decay), [extension])
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


def test_two_optimizers_are_refused():
    with pytest.raises(InputError, match="soap and muon bring an optimizer each: choose one"):
        make_optimizer(tiny_classifier(), options(), load_extensions(["soap", "muon"]))
