"""Kinds of regularisation beside dropout: smoothed labels, mixout, and closeness to the start.

    smoothing   L' = (1 − ε) L + ε · mean_c(−log p_c)          Szegedy et al. 2016, section 7
    mixout      W' = [(1 − M) ∘ U + M ∘ W − p U] / (1 − p)     Lee et al. 2020, eq. 5 (μ = 1 − p)
    l2_sp       L' = L + α/2 ‖w − w⁰‖² + α/2 ‖v‖²              Li et al. 2018, eq. 4 (L2-SP)

M is 0 with probability p, in each pass anew; U and w⁰ are the weights that training starts from, of
GPT-2, and v those of a new head. Mixout acts on the matrices of the layers. With p = 1 it leaves U.
Differs from the papers in one α for w and v, and in that ε smooths the tokens of sonnets, too.

    python classifier.py --fine-tune-mode full-model --extension regularise:smoothing=0.1,mixout=0.1
    python classifier.py --fine-tune-mode full-model --extension regularise:l2_sp=0.01
    python classifier.py --fine-tune-mode full-model --extension regularise:attention_dropout=0.2
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import IGNORED_LABEL
from engine.errors import InputError
from engine.extension import Extension, remedy_for_frozen

UNCHANGED = -1.0


@dataclass
class Regularise(Extension):
    """smoothing ε, mixout p, l2_sp α; the dropouts' probabilities, where -1 is the model's own."""

    smoothing: float = 0.0
    mixout: float = 0.0
    l2_sp: float = 0.0
    attention_dropout: float = UNCHANGED
    embedding_dropout: float = UNCHANGED

    recordable = True

    def __post_init__(self):
        dropouts = [p for p in (self.attention_dropout, self.embedding_dropout) if p != UNCHANGED]
        shares = [self.smoothing, self.mixout, *dropouts]
        if not all(0 <= share <= 1 for share in shares) or not 0 <= self.l2_sp < float("inf"):
            raise InputError(
                f"regularise: smoothing={self.smoothing}, mixout={self.mixout}, "
                f"l2_sp={self.l2_sp}, attention_dropout={self.attention_dropout}, "
                f"embedding_dropout={self.embedding_dropout}: expected an l2_sp of at least 0, and "
                f"the others from 0 to 1"
            )

    def prepare_model(self, model) -> None:
        if self.embedding_dropout != UNCHANGED:
            model.gpt.embed_dropout.p = self.embedding_dropout
        if self.attention_dropout != UNCHANGED:
            for layer in model.gpt.gpt_layers:
                layer.self_attention.dropout.p = self.attention_dropout
        if self.mixout:
            for linear in self._linears(model):
                linear.forward = MixoutForward(linear, self.mixout)
        if self.l2_sp:
            model.start = Start(model.gpt)

    def check(self, model) -> None:
        """Later extensions must have left the linears where they were."""
        linears = self._linears(model) if self.mixout else []
        if not all(isinstance(linear.forward, MixoutForward) for linear in linears):
            raise InputError("regularise: mixout: a linear was changed later: give it last")

    def _linears(self, model) -> list[nn.Linear]:
        found = [m for m in model.gpt.gpt_layers.modules() if isinstance(m, nn.Linear)]
        changed = any("forward" in vars(linear) for linear in found)
        own = all(isinstance(linear.forward, MixoutForward) for linear in found)
        if not all(linear.weight.requires_grad for linear in found) or (changed and not own):
            remedy = remedy_for_frozen(model, "leave it or the other technique out")
            raise InputError(
                f"regularise: mixout: it mixes trained matrices with those from the start, and "
                f"found frozen or changed ones: {remedy}"
            )
        return found

    def penalty(self, model, batch: dict, logits):
        added = 0.0
        if self.smoothing:
            added = self.smoothing * smoothing_gap(logits, batch["labels"])
        if self.l2_sp:
            added = added + 0.5 * self.l2_sp * model.start.distance(model)
        return added


def smoothing_gap(logits, labels) -> torch.Tensor:
    """What a mean over classes costs more than the labels, mean over these: (..., c), (...)."""
    log_p, labels = logits.flatten(0, -2).float().log_softmax(dim=-1), labels.flatten()
    real = labels != IGNORED_LABEL
    chosen = log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return ((chosen - log_p.mean(dim=-1)) * real).sum() / real.sum()


class MixoutForward:
    """What a linear does in training in the place of its own forward."""

    def __init__(self, linear: nn.Linear, p: float):
        self.linear, self.p = linear, p
        linear.register_buffer("start", linear.weight.detach().clone(), persistent=False)

    def __call__(self, x):
        linear = self.linear
        weight = linear.weight
        if linear.training:
            weight = mixed(weight, linear.start, self.p)
        return F.linear(x, weight, linear.bias)


def mixed(weight, start, p: float) -> torch.Tensor:
    """W' of two matrices of one shape."""
    if p == 1:
        return start + 0 * weight  # a gradient of 0
    away = torch.rand_like(weight) < p
    return (torch.where(away, start, weight) - p * start) / (1 - p)


class Start(nn.Module):
    """The weights of a GPT-2 as they are now; no checkpoint has them."""

    def __init__(self, gpt):
        super().__init__()
        for name, parameter in gpt.named_parameters():
            if parameter.requires_grad:
                place = name.replace(".", "/")
                self.register_buffer(place, parameter.detach().clone(), persistent=False)

    def distance(self, model) -> torch.Tensor:
        """‖w − w⁰‖² + ‖v‖² of a model's trained weights; v: those that were not there."""
        known, total = dict(self.named_buffers()), 0.0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                start = known.get(name.removeprefix("gpt.").replace(".", "/"))
                moved = parameter if start is None else parameter - start
                total = total + moved.float().square().sum()
        return total
