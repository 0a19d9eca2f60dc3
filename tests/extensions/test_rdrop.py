"""R-Drop is the paper's loss, by torch's divergence; without dropout it changes nothing."""

import math

import pytest
import torch
from technique_cases import Tried
from tiny_run import Averager, examples, run, weights
from torch.nn import functional as F

from engine.batches import collate
from engine.errors import InputError
from extensions.rdrop import RDrop, symmetric_divergence

TRIED = {"rdrop": Tried(varied=["alpha=0.3", "alpha=0"])}


def test_the_divergence_is_torch_s_in_both_directions():
    torch.manual_seed(0)
    one, two = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = [F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p))]
    torch.testing.assert_close(symmetric_divergence(one, two), sum(kl) / 2)
    assert float(symmetric_divergence(one, one + 3)) == pytest.approx(0, abs=1e-12)


def test_task_loss_and_penalty_together_are_the_paper_s_loss(monkeypatch):
    model, dataset = Averager(dropout=0.5).train(), examples(6)
    batch = collate([dataset[i] for i in range(6)])
    first = model(batch["token_ids"], batch["attention_mask"])
    second = model(batch["token_ids"], batch["attention_mask"])
    monkeypatch.setattr("extensions.rdrop.forward_tokens", lambda model, batch: second)
    found = F.cross_entropy(first, batch["labels"])
    found = found + RDrop(alpha=0.7).penalty(model, batch, first)
    nll = [F.cross_entropy(x, batch["labels"], reduction="none") for x in (first, second)]
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    kl = [F.kl_div(a, b, reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p))]
    paper = nll[0] + nll[1] + 0.7 * 0.5 * (kl[0] + kl[1])  # eq. 4, for each row
    torch.testing.assert_close(found, 0.5 * paper.mean())


def test_padding_does_not_contribute():
    torch.manual_seed(0)
    labels = torch.tensor([[1, 2, -100], [0, -100, -100]])

    class Noisy(torch.nn.Module):
        def forward(self, token_ids, attention_mask):
            logits = torch.ones(2, 3, 4)
            logits[labels == -100] = torch.randn(3, 4) * 100
            return logits

    batch = {"labels": labels, "token_ids": labels, "attention_mask": labels}
    logits = Noisy()(None, None)
    assert float(RDrop().penalty(Noisy(), batch, logits)) == pytest.approx(0, abs=1e-6)


def test_without_dropout_a_run_is_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)
    ends = []
    for extensions in ([], [RDrop(alpha=5.0)]):
        model = Averager(dropout=0.0)
        run(model, tmp_path / str(len(ends)), extensions=extensions, epochs=2, lr=0.01)
        ends.append(weights(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name])


def test_it_brings_two_passes_closer_together(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)
    apart = {}
    for alpha in (0.0, 20.0):
        model, dataset = Averager(dropout=0.5), examples(60)
        torch.manual_seed(0)
        extensions = [RDrop(alpha=alpha)]
        run(model, tmp_path / str(alpha), extensions=extensions, rows=60, epochs=30, lr=0.02)
        batch = collate([dataset[i] for i in range(60)])
        model.train()
        with torch.no_grad():
            passes = [model(batch["token_ids"], batch["attention_mask"]) for _ in range(40)]
        pairs = zip(passes[::2], passes[1::2], strict=True)
        apart[alpha] = sum(float(symmetric_divergence(a, b)) for a, b in pairs) / 20
    assert apart[20.0] < 0.5 * apart[0.0]


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_an_invalid_alpha_is_refused(alpha):
    with pytest.raises(InputError, match="expected at least 0"):
        RDrop(alpha=alpha)
