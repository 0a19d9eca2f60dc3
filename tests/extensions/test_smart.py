"""SMART: nothing where nothing moves, the ascent beats chance, θ̃ is the paper's running mean."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch.nn import functional as F

from classifier import GPT2SentimentClassifier
from engine.errors import InputError
from extensions.smart import Smart, added, divergence, dropout_off

TRIED = {
    "smart": Tried(
        "proximal=1",
        varied=[
            "weight=0.5,radius=1e-2,step=1e-2,noise=1e-4,ascents=2",
            "weight=0,proximal=2,momentum=0.5",
        ],
    )
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("smart") / "model", dropout=0.1)


@pytest.fixture
def model(folder):
    torch.manual_seed(0)
    settings = SimpleNamespace(
        model_size=str(folder), num_labels=3, hidden_dropout_prob=0.3, fine_tune_mode="full-model"
    )
    model = GPT2SentimentClassifier(settings)
    model.sentiment_head.weight.data *= 5
    return model.train()


@pytest.fixture
def batch():
    tokens = torch.arange(24).view(4, 6) % 40
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0], [1] * 6])
    labels = torch.tensor([0, 2, 1, 0])
    return {"token_ids": tokens, "attention_mask": mask, "labels": labels, "sent_ids": list("abcd")}


REAL = torch.ones(4, dtype=torch.bool)
LOGITS = torch.zeros(4, 3)  # of the loss, where they are not asked about


def test_the_divergence_is_both_of_torch_s():
    torch.manual_seed(0)
    one, two = torch.randn(4, 5), torch.randn(4, 5)
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = [F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p))]
    torch.testing.assert_close(divergence(one, two, REAL), sum(kl))
    some = torch.tensor([True, False, True, False])
    torch.testing.assert_close(divergence(one, two, some), divergence(one[::2], two[::2], REAL[:2]))


def test_a_radius_of_0_gives_0_also_with_dropout(model, batch):
    penalty = Smart(radius=0.0).penalty(model, batch, LOGITS)
    assert penalty.item() == 0
    assert model.training  # dropout is on again


def test_the_penalty_of_a_trained_size_is_more_than_rounding_also_beside_bfloat16():
    """Of gpt2-mini, whose weights have the size of trained ones."""
    torch.manual_seed(0)
    settings = SimpleNamespace(
        model_size="gpt2-mini", num_labels=5, hidden_dropout_prob=0.3, fine_tune_mode="full-model"
    )
    model = GPT2SentimentClassifier(settings)
    tokens = torch.randint(len(model.gpt.word_embedding.weight), (4, 12))
    batch = {"token_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    batch["labels"] = torch.zeros(4, dtype=torch.long)

    def penalty(bf16: bool, **options) -> float:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return Smart(**options).penalty(model, batch, LOGITS).item()

    plain = penalty(False)
    assert plain > 1e-4
    assert penalty(True) == plain
    assert penalty(False, radius=1e-5) < 1e-6  # the paper's


def test_the_penalty_is_the_divergence_at_the_worst_point(model, batch):
    """By hand: a model that is given the embeddings with ν added."""
    smart = Smart(weight=2.0, radius=0.1, noise=0.01, step=1.0)
    torch.manual_seed(5)
    found = smart.penalty(model, batch, LOGITS)
    torch.manual_seed(5)
    model.eval()
    clean = model(batch["token_ids"], batch["attention_mask"])
    moved = smart.climb(model, batch, clean.detach(), REAL)
    hidden = model.gpt.embed(batch["token_ids"]) + moved
    states = model.gpt.final_layer_norm(model.gpt.encode(hidden, batch["attention_mask"]))
    last = states[torch.arange(4), batch["attention_mask"].sum(dim=1) - 1]
    expected = 2 * divergence(model.classify(last), clean, REAL)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_ascent_beats_random_directions(model, batch):
    smart = Smart(radius=0.02, noise=1e-3, step=1.0)
    with dropout_off(model), torch.no_grad():
        clean = model(batch["token_ids"], batch["attention_mask"])

        def change(moved) -> float:
            with added(model.gpt.embed_dropout, moved):
                logits = model(batch["token_ids"], batch["attention_mask"])
            return float(divergence(logits, clean, REAL))

        one = change(smart.climb(model, batch, clean, REAL))
        three = change(replace(smart, ascents=3).climb(model, batch, clean, REAL))
        corners = [change(0.02 * torch.randn(4, 6, 32).sign()) for _ in range(50)]
    assert one > max(corners) and three > 0.9 * one


def test_what_is_added_stays_in_the_box_and_off_afterwards(model, batch):
    smart = Smart(radius=0.003, noise=0.01, step=0.5)
    with dropout_off(model):
        clean = model(batch["token_ids"], batch["attention_mask"]).detach()
        moved = smart.climb(model, batch, clean, REAL)
        assert moved.abs().max() <= 0.003 and (moved.abs() > 0.0029).any()
        assert torch.equal(model(batch["token_ids"], batch["attention_mask"]), clean)
    assert all(p.grad is None for p in model.parameters())


def test_the_proximal_part_is_the_distance_to_the_running_mean(model, batch):
    """Of the logits that the loss is about; those of the mean are without dropout."""
    smart = Smart(weight=0.0, proximal=3.0, momentum=0.9)
    smart.prepare_model(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with dropout_off(model):
        before = model(batch["token_ids"], batch["attention_mask"]).detach()
    assert smart.penalty(model, batch, before).item() == 0  # θ̃ = θ at the start
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    now = model(batch["token_ids"], batch["attention_mask"])
    found = smart.penalty(model, batch, now)
    torch.testing.assert_close(found, 3 * divergence(now, before, REAL))
    found.backward()
    assert all(p.grad is not None for p in model.gpt.gpt_layers.parameters())
    smart.after_step(model)
    average = dict(model.smart_average.named_buffers())
    for name, p in model.named_parameters():
        expected = 0.1 * p.detach() + 0.9 * start[name]
        torch.testing.assert_close(average[name.replace(".", "/")], expected)


@pytest.mark.parametrize(
    "options", [{"radius": -1.0}, {"ascents": 0}, {"momentum": 1.0}, {"weight": float("nan")}]
)
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"smart: .*expected"):
        Smart(**options)
