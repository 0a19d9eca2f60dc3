"""The chunked loss against F.cross_entropy of all logits: values, gradients, right answers."""

import pytest
import torch
from tiny_run import TINY
from torch.nn import functional as F

from engine.batches import IGNORED_LABEL
from engine.extension import equip, load_extensions
from engine.fast import chunked_loss
from engine.fast.chunked_loss import CHUNK, FEWEST, linear_cross_entropy
from engine.language_model import LanguageModel, forward_blocks
from models.gpt2 import GPT2Model

N, D, V = 37, 12, 53


@pytest.fixture
def inputs():
    """Hidden states (n, d) and a weight (v, d) in float64, with gradients; labels (n,)."""
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (N,))
    labels[::5] = (hidden @ weight.T).argmax(dim=1)[::5]
    return hidden, weight, labels


def whole(hidden, weight, labels):
    """The oracle: all logits, their loss, and the right answers."""
    logits = F.linear(hidden, weight)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return loss, (logits.argmax(dim=-1) == labels).sum()


def gradients(loss, *tensors):
    return torch.autograd.grad(loss / 7, tensors)


@pytest.mark.parametrize("positions", [1, 5, 36, 37, 100, None])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_loss_gradients_and_right_answers_are_those_of_all_logits(positions, ignored, inputs):
    hidden, weight, labels = inputs
    labels[{"none": slice(0), "some": slice(3, 30, 4), "all": slice(None)}[ignored]] = IGNORED_LABEL
    expected, right = whole(*inputs)
    found = linear_cross_entropy(*inputs, positions)
    assert found.correct == right and (right > 3) == (ignored != "all")
    torch.testing.assert_close(found.loss, expected, atol=1e-10, rtol=1e-12)
    pairs = zip(*(gradients(loss, hidden, weight) for loss in (found.loss, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_float32_agrees_within_its_rounding(inputs):
    exact, _ = whole(*inputs)
    single = [x.detach().float().requires_grad_() for x in inputs[:2]]
    found = linear_cross_entropy(*single, inputs[2], 8)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss.double(), exact, atol=0, rtol=1e-6)
    pairs = zip(gradients(found.loss, *single), gradients(exact, *inputs[:2]), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=1e-5)


def test_logits_that_no_exponential_holds_have_a_finite_loss():
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    labels = torch.tensor([1, 1])
    found, (expected, right) = (f(hidden, weight, labels) for f in (linear_cross_entropy, whole))
    assert found.loss == expected == 2000 and found.correct == right == 1


@pytest.mark.parametrize("positions", [8, 100])
def test_under_autocast_products_are_in_bfloat16_and_the_loss_is_in_float32(positions, inputs):
    hidden, weight = (x.detach().float().requires_grad_() for x in inputs[:2])
    exact, _ = whole(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = whole(hidden, weight, inputs[2])
        found = linear_cross_entropy(hidden, weight, inputs[2], positions)
    torch.testing.assert_close(found.loss, expected, atol=0, rtol=1e-6)
    assert abs(found.loss - exact) > 1e-5 * exact  # the products were rounded
    ours, theirs = (gradients(loss, hidden, weight) for loss in (found.loss, expected))
    true = gradients(exact, *inputs[:2])
    for one, other, best in zip(ours, theirs, true, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
        assert (one - best).norm() < 1.2 * (other - best).norm() + 1e-6


def test_without_gradients_none_are_computed(inputs, monkeypatch):
    calls = []
    monkeypatch.setattr("engine.fast.chunked_loss.add_product", lambda *_: calls.append(1))
    with torch.no_grad():
        found = linear_cross_entropy(*inputs, 8)
    assert not found.loss.requires_grad and not calls
    frozen = [x.detach() for x in inputs]
    assert torch.equal(linear_cross_entropy(*frozen, 8).loss, found.loss) and not calls


def test_no_tensor_holds_the_logits_of_all_positions(monkeypatch):
    """The mechanism: what is computed is at most a chunk of positions wide, in chunks alike."""
    hidden, weight = torch.randn(3000, 4, requires_grad=True), torch.randn(70_000, 4)
    labels, sizes = torch.zeros(3000, dtype=torch.long), []

    def score(logits, labels, real=chunked_loss.score):
        sizes.append(len(logits))
        return real(logits, labels)

    monkeypatch.setattr("engine.fast.chunked_loss.score", score)
    linear_cross_entropy(hidden, weight, labels)
    assert CHUNK["cpu"] // 70_000 < FEWEST and sizes == [500] * 6


# -- the language model -------------------------------------------------------------------------


def model(extensions=()):
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = type("Settings", (), {"pretrained": False, "gpt_config": vars(TINY) | rates})
    made = LanguageModel(settings).double()
    equip(made, load_extensions(extensions))
    return made


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(TINY.vocab_size, (6, 9), generator=draw)
    return {"token_ids": tokens[:, :-1], "labels": tokens[:, 1:].clone()}


def learnt(made, forward, batch) -> dict:
    made.zero_grad()
    for part in (slice(0, 2), slice(2, 6)):  # accumulated
        forward(made, {key: value[part] for key, value in batch.items()}).backward()
    return {name: parameter.grad for name, parameter in made.named_parameters()}


@pytest.mark.parametrize("positions", [3, 100])
def test_the_tied_weights_get_both_gradients_of_the_lesson(positions, batch, monkeypatch):
    monkeypatch.setattr("engine.fast.chunked_loss.FEWEST", positions)
    monkeypatch.setitem(CHUNK, "cpu", 1)
    fast, lesson = model(), model()
    lesson.gpt.__class__ = GPT2Model

    def loss_of_logits(made, batch):
        logits = made(batch["token_ids"])
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")

    found = learnt(fast, lambda m, b: forward_blocks(m, b).loss, batch)
    expected = learnt(lesson, loss_of_logits, batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=1e-9, msg=name)


def test_a_compiled_model_scores_the_same(batch):
    made = model()
    compiled = torch.compile(made, dynamic=True, backend="aot_eager")
    found = learnt(compiled, lambda m, b: forward_blocks(m, b).loss, batch)
    expected = learnt(made, lambda m, b: forward_blocks(m, b).loss, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient, msg=name)
