"""Techniques train in float16 as they do in float32: what they keep is unscaled."""

import functools

import pytest
import torch
from technique_cases import those_whose
from tiny_run import examples, tiny_classifier, trainer

from classifier import TASKS
from engine.batches import make_loader
from engine.extension import Extension, apply_extensions, load_extensions


def with_technique(tmp_path, name: str, **options):
    """A run of some steps of a tiny classifier with a technique."""
    model = tiny_classifier()
    apply_extensions(model, load_extensions([name]))
    data = examples(16)
    loader = make_loader(data, 4, shuffle=True)
    how = {"extensions": model.extensions, "lr": 1e-3} | options
    run = trainer(model, loader, TASKS["sst"].loss_fn, tmp_path, **how)
    torch.manual_seed(2)
    run.train_epoch()
    return run


INIT = torch.amp.GradScaler.__init__


def first_scale(monkeypatch, scale: float) -> None:
    begin = functools.partialmethod(INIT, init_scale=scale)
    monkeypatch.setattr("torch.amp.GradScaler.__init__", begin)


OPTIMIZERS = those_whose(lambda e: type(e).make_optimizer is not Extension.make_optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_a_technique_sees_the_same_whatever_the_scale(name, tmp_path, monkeypatch):
    """Each kind of what it keeps, moments and factors, over all parameters."""
    ends = []
    for scale in (4096.0, 64.0):
        first_scale(monkeypatch, scale)
        run = with_technique(tmp_path, name, fp16=True)
        assert run.progress.skipped == 0 and run.scaler.get_scale() == scale
        kinds = {name for state in run.optimizer.state.values() for name in state}
        ends.append({name: size_of(run.optimizer, name) for name in kinds})
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def size_of(optimizer, name: str) -> float:
    """The norm of what an optimizer keeps of all parameters under a name."""
    kept = [state[name] for state in optimizer.state.values() if name in state]
    parts = [part for each in kept for part in (each if isinstance(each, list) else [each])]
    return float(torch.cat([torch.as_tensor(part).float().flatten() for part in parts]).norm())


def test_k_fac_s_factors_are_those_of_float32(tmp_path, monkeypatch):
    first_scale(monkeypatch, 64.0)
    found, expected = (
        with_technique(tmp_path, "kfac:collect=1", fp16=fp16).optimizer for fp16 in (True, False)
    )
    for half, full in zip(found.state.values(), expected.state.values(), strict=True):
        for side in ("input", "output"):
            if side in full:
                ratio = float(half[side].trace() / full[side].trace())
                assert ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["rdrop", "smart:proximal=1", "gradient_checkpointing", "lora"])
def test_a_technique_follows_its_run_in_float32(name, tmp_path, monkeypatch):
    first_scale(monkeypatch, 64.0)
    found, expected = (
        with_technique(tmp_path, name, fp16=fp16).progress.loss for fp16 in (True, False)
    )
    assert found == pytest.approx(expected, rel=5e-3)
