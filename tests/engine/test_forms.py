"""A run uses the faster forms of engine/fast, and does without them where the folder is not."""

import importlib.util
import sys

import pytest
import torch
from tiny_run import TINY

import engine.fast.adamw
import engine.fast.gpt2
from engine import forms
from engine.batches import IGNORED_LABEL
from models.gpt2 import GPT2Model
from modules.attention import causal_attention
from optimizer import AdamW


def loaded_again():
    """A second copy of the module, imported now."""
    spec = importlib.util.spec_from_file_location("forms_again", forms.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fast_forms_are_taken_where_they_are():
    assert forms.AdamW is engine.fast.adamw.FusedAdamW
    assert forms.accelerate is engine.fast.gpt2.accelerate


def test_without_the_folder_the_lesson_itself_is_used(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("engine.fast")]:
        monkeypatch.setitem(sys.modules, name, None)
    plain, model = loaded_again(), object()
    assert plain.AdamW is AdamW and list(plain.DENSE) == [causal_attention]
    assert plain.accelerate(model, extended=True) is model


def test_without_the_folder_next_tokens_get_the_same_scores(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("engine.fast")]:
        monkeypatch.setitem(sys.modules, name, None)
    plain, gpt = loaded_again(), GPT2Model(TINY)
    hidden_states, labels = torch.randn(2, 9, TINY.hidden_size), torch.randint(40, (2, 9))
    labels[0, :4] = IGNORED_LABEL
    found, fast = (f.score_next_tokens(gpt, hidden_states, labels) for f in (plain, forms))
    torch.testing.assert_close(found.loss, fast.loss)
    assert found.loss > 0 and found.correct == fast.correct


def test_a_package_that_a_fast_form_misses_is_still_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "engine.fast.adamw")
    monkeypatch.setitem(sys.modules, "torch.optim.adamw", None)
    with pytest.raises(ModuleNotFoundError, match=r"torch\.optim\.adamw"):
        loaded_again()
