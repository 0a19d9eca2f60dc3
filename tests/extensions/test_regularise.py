"""Smoothing is torch's, mixout keeps the mean and ends at the start, L2-SP is its closed form."""

import pytest
import torch
from matrix_runs import model_with_head
from technique_cases import Tried
from torch.nn import functional as F

from engine.batches import IGNORED_LABEL
from engine.errors import InputError
from engine.extension import apply_extensions
from extensions.lora import LoRA
from extensions.regularise import Regularise, mixed, smoothing_gap

TRIED = {
    "regularise": Tried(
        "smoothing=0.1,l2_sp=0.01",
        varied=[
            "smoothing=0.2,mixout=0.3",
            "l2_sp=0.1,attention_dropout=0.1,embedding_dropout=0.1",
        ],
    )
}
TOKENS = torch.tensor([[1, 2, 3, 4]])


def prepared(**options):
    model = model_with_head(layers=2)
    apply_extensions(model, [Regularise(**options)])
    return model


def hidden(model):
    return model.gpt(TOKENS)["last_hidden_state"]


@pytest.mark.parametrize("shape", [(6, 5), (2, 7, 11)])
def test_smoothed_labels_are_torch_s(shape):
    logits = torch.randn(shape)
    labels = torch.randint(shape[-1], shape[:-1])
    if len(shape) > 2:
        labels[:, -2:] = IGNORED_LABEL
    flat = logits.flatten(0, -2), labels.flatten()
    plain = F.cross_entropy(*flat, ignore_index=IGNORED_LABEL)
    smoothed = F.cross_entropy(*flat, ignore_index=IGNORED_LABEL, label_smoothing=0.3)
    torch.testing.assert_close(plain + 0.3 * smoothing_gap(logits, labels), smoothed)


def test_mixout_keeps_the_mean_and_each_number_is_the_start_or_pushed_away_from_it():
    weight, start, p = torch.randn(5, 4), torch.randn(5, 4), 0.3
    drawn = torch.stack([mixed(weight, start, p) for _ in range(20_000)])
    torch.testing.assert_close(drawn.mean(dim=0), weight, atol=0.06, rtol=0)
    kept = (weight - p * start) / (1 - p)
    is_start, is_kept = (torch.isclose(drawn, x, atol=1e-6) for x in (start, kept))
    assert bool((is_start | is_kept).all())
    assert is_start.float().mean() == pytest.approx(p, abs=0.01)


def test_mixout_with_a_start_of_zeros_is_dropout():
    torch.manual_seed(0)
    weight = torch.randn(40, 40)
    found = mixed(weight, torch.zeros_like(weight), 0.5)
    assert torch.equal(found[found != 0], (2 * weight)[found != 0])


def test_mixout_acts_in_training_alone_and_at_1_is_the_start():
    model, plain = prepared(mixout=1.0), model_with_head(layers=2)
    for parameter in model.gpt.gpt_layers.parameters():
        if parameter.dim() == 2:
            parameter.data += 0.1
    model.eval()
    assert not torch.allclose(hidden(model), hidden(plain.eval()))
    model.train()
    torch.testing.assert_close(hidden(model), hidden(plain))
    hidden(model).sum().backward()
    assert all(bool((p.grad == 0).all()) for p in model.gpt.gpt_layers.parameters() if p.dim() == 2)


def test_before_the_first_step_mixout_changes_nothing():
    model, plain = prepared(mixout=0.4).train(), model_with_head(layers=2)
    torch.testing.assert_close(hidden(model), hidden(plain.train()))


def test_closeness_to_the_start_is_the_closed_form():
    model = prepared(l2_sp=0.2)
    moved = torch.zeros(())
    for name, parameter in model.gpt.named_parameters():
        step = 0.01 * (1 + len(name))
        parameter.data += step
        moved += step**2 * parameter.numel()
    head = sum(p.square().sum() for p in model.head.parameters())
    found = model.extensions[0].penalty(model, {}, None)
    torch.testing.assert_close(found, 0.1 * (moved + head), rtol=1e-4, atol=0)
    found.backward()
    weight = model.head.weight
    torch.testing.assert_close(weight.grad, 0.2 * weight.detach())


def test_dropouts_are_what_is_asked_for():
    model = prepared(attention_dropout=0.25)
    assert all(layer.self_attention.dropout.p == 0.25 for layer in model.gpt.gpt_layers)
    before = model_with_head(layers=2).gpt.embed_dropout.p
    assert model.gpt.embed_dropout.p == before
    assert prepared(embedding_dropout=0.5).gpt.embed_dropout.p == 0.5


def test_no_checkpoint_has_the_start():
    names = model_with_head(layers=2).state_dict().keys()
    assert prepared(mixout=0.1, l2_sp=0.1).state_dict().keys() == names


def test_mixout_refuses_frozen_matrices():
    model = model_with_head(layers=2)
    with pytest.raises(InputError, match="frozen or changed ones: leave it or the other"):
        apply_extensions(model, [LoRA(rank=2), Regularise(mixout=0.1)])
    model = model_with_head(layers=2)
    model.gpt.requires_grad_(False)  # as classifier.py does by default
    with pytest.raises(InputError, match="frozen or changed ones: give --fine-tune-mode full"):
        apply_extensions(model, [Regularise(mixout=0.1)])


@pytest.mark.parametrize("wrong", [{"smoothing": 1.5}, {"mixout": -0.1}, {"l2_sp": -1.0}])
def test_shares_beyond_1_are_refused(wrong):
    with pytest.raises(InputError, match="regularise: smoothing="):
        Regularise(**wrong)
