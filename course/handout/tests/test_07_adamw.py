"""`AdamW.step` in optimizer.py; optimizer_test.py takes a thousand steps more."""

import copy

import pytest
import torch
from helpers import same

from optimizer import AdamW


def moved(gradients, start=1.0, **options) -> list[float]:
    """Where one weight is after each gradient."""
    weight = torch.nn.Parameter(torch.tensor([start]))
    optimizer = AdamW([weight], **options)
    places = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        places.append(weight.item())
    return places


def test_the_first_step_is_as_long_as_the_learning_rate():
    found = [moved([gradient], lr=0.1)[0] for gradient in (0.5, -20.0)]
    same(
        torch.tensor(found),
        [0.9, 1.1],
        "The first step is lr long, against the gradient's sign, "
        "whatever its size: correct the bias of both moments.",
    )


def test_later_steps_remember_earlier_gradients():
    found = moved([1.0, 3.0, 0.0], lr=0.1, betas=(0.5, 0.75), eps=0.0)
    same(
        torch.tensor(found),
        [0.9, 0.801146, 0.744911],
        "Gradients 1, 3, 0 with lr 0.1 and betas "
        "0.5 and 0.75: are both moments kept from step to step, and are steps counted from 1?",
    )


def test_epsilon_stands_beside_the_uncorrected_root():
    found = moved([1.0], lr=0.1, betas=(0.5, 0.75), eps=0.5)
    same(
        torch.tensor(found),
        [0.95],
        "Epsilon is added to the root of v as it is, and the bias correction is in the step size.",
    )


def test_without_correction_the_moments_are_taken_as_they_are():
    found = moved([1.0], lr=0.1, betas=(0.5, 0.96), eps=0.0, correct_bias=False)
    same(
        torch.tensor(found),
        [0.75],
        "correct_bias=False: the step size is lr itself, here times m / root of v = 0.5 / 0.2.",
    )


def test_decay_is_of_the_moved_weight_by_the_plain_learning_rate():
    found = moved([1.0], start=2.0, lr=0.1, weight_decay=0.5)
    same(
        torch.tensor(found),
        [1.9 * 0.95],
        "Move first, to 1.9; then take lr · weight_decay = "
        "0.05 of that away. The gradient itself does not see the decay.",
    )


def test_each_group_has_its_own_numbers():
    weights = [torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2)]
    optimizer = AdamW([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.2}])
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()
    same(
        torch.cat(list(weights)).detach(),
        [0.9, 0.8],
        "Two groups with lr 0.1 and 0.2: read the numbers from the group.",
    )


def test_a_weight_without_a_gradient_stays():
    weights = [torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2)]
    weights[0].grad = torch.ones(1)
    AdamW(weights, lr=0.1, weight_decay=0.5).step()
    assert weights[1].item() == 1.0, "A parameter whose grad is None must not move, nor decay."


def test_a_step_changes_the_parameter_in_place_and_gives_back_the_loss():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    place = weight.data_ptr()

    def closure():
        loss = (weight**2).sum()
        loss.backward()
        return loss

    loss = AdamW([weight], lr=0.1).step(closure)
    assert weight.data_ptr() == place and weight.requires_grad, "Change the parameter in place."
    assert loss is not None and loss.item() == 1.0, "step(closure) calls it and returns its loss."
    same(weight.detach(), [0.9], "The closure's gradient must be used.")


def test_a_saved_state_goes_on_where_it_was():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = AdamW([weight], lr=0.1)
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    saved, place = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    if not saved["state"]:
        pytest.fail("self.state is empty after a step: what is kept elsewhere is not saved.")
    kept = set(saved["state"][0])
    assert kept == {"step", "exp_avg", "exp_avg_sq"}, f"Expected the three names, found {kept}."
    again = torch.nn.Parameter(place)
    resumed = AdamW([again], lr=0.1)
    resumed.load_state_dict(saved)
    for parameter, stepper in ((weight, optimizer), (again, resumed)):
        parameter.grad = torch.tensor([-2.0])
        stepper.step()
    same(again.detach(), weight.detach(), "Step 2 after loading differs from step 2 without.")
