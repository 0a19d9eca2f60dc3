"""SMART: predictions shall change little when embeddings move a little, and from step to step.

    F = L + λ R,    R = 1/n Σ max_{‖ν‖∞ ≤ ε} ℓ(f(x + ν), f(x))       Jiang et al. 2020, eq. 3–5
    + μ/n Σ ℓ(f(x; θ), f(x; θ̃))                         eq. 6–7, Bregman proximal point
    θ̃ ← (1 − β) θ + β θ̃  after each step                momentum, section 3.2

ℓ(P, Q) = KL(P ‖ Q) + KL(Q ‖ P). The maximum is sought as in algorithm 1: ν begins as Normal(0, σ²)
and climbs the gradient in a few steps, each followed by a projection into the box. Differs from the
paper in that the gradient is divided by its largest element in each row, so that η need not fit the
model; that dropout is off in the passes that are added here, so that R is 0 where nothing moved,
but not in f(x; θ) of eq. 7, the logits that L is about: otherwise the network without dropout could
stand still beside one with it that learns; and in the default of ε: with the paper's 1e-5, R of
gpt2-mini is below 1e-6, which regularises nothing. The published code does not project; its ν is
about as long as η, which is ε here. The added passes are in float32 beside bfloat16, too, whose
rounding moves predictions more than ν does.

    python classifier.py --fine-tune-mode full-model --extension smart:weight=1,proximal=1
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from engine.batches import IGNORED_LABEL, forward_tokens
from engine.errors import InputError
from engine.extension import Extension
from extensions.averaged_weights import AveragedWeights


@dataclass
class Smart(Extension):
    """weight λ, radius ε, step η, noise σ; proximal μ, of which 0 switches that part off."""

    weight: float = 1.0
    radius: float = 1e-3
    step: float = 1e-3
    noise: float = 1e-5
    ascents: int = 1
    proximal: float = 0.0
    momentum: float = 0.99

    def __post_init__(self):
        numbers = (self.weight, self.radius, self.step, self.noise, self.proximal)
        if not all(0 <= number < float("inf") for number in numbers) or self.ascents < 1:
            raise InputError(f"smart: {self}: expected numbers of at least 0, ascents at least 1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"smart: momentum={self.momentum}: expected one in [0, 1)")

    @property
    def shardable(self) -> bool:
        return not self.proximal  # whose average is whole

    def prepare_model(self, model) -> None:
        """Keep θ̃ in the model, whose checkpoints then have it; it begins as θ."""
        if self.proximal:
            model.smart_average = AveragedWeights(model)

    def penalty(self, model, batch: dict, logits):
        """λ R + μ D over this batch; D is about the logits that the task's loss is about."""
        real = (batch["labels"] != IGNORED_LABEL).flatten()
        total = 0.0
        with dropout_off(model), torch.autocast(logits.device.type, enabled=False):
            if self.weight:
                total = self.weight * self.roughness(model, batch, real)
            if self.proximal:
                before = self._average_logits(model, batch)
                total = total + self.proximal * divergence(logits, before, real)
        return total

    def roughness(self, model, batch: dict, real) -> torch.Tensor:
        """R of eq. 3."""
        clean = forward_tokens(model, batch)
        moved = self.climb(model, batch, clean.detach(), real)
        with added(model.gpt.embed_dropout, moved):
            return divergence(forward_tokens(model, batch), clean, real)

    def climb(self, model, batch: dict, clean, real) -> torch.Tensor:
        """ν (b, t, d) that changes the predictions as much as the box allows, by algorithm 1."""
        d = model.gpt.word_embedding.weight.shape[1]
        shape = (*batch["token_ids"].shape, d)
        moved = self.noise * torch.randn(shape, device=batch["token_ids"].device)
        for _ in range(self.ascents):
            moved = moved.detach().requires_grad_()
            with added(model.gpt.embed_dropout, moved), torch.enable_grad():
                change = divergence(forward_tokens(model, batch), clean, real)
                [gradient] = torch.autograd.grad(change, moved)
            largest = gradient.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
            moved = (moved + self.step * gradient / largest).clamp(-self.radius, self.radius)
        return moved.detach()

    @torch.no_grad()
    def _average_logits(self, model, batch: dict):
        """f(x; θ̃)."""
        average = model.smart_average.of(model)
        inputs = (batch["token_ids"], batch["attention_mask"])
        return functional_call(model, average, inputs)

    def after_step(self, model) -> None:
        if self.proximal:
            model.smart_average.move(model, 1 - self.momentum)


def divergence(one, two, real) -> torch.Tensor:
    """ℓ, symmetric, a mean over the real rows of two sets of logits (..., classes)."""
    p, q = (x.flatten(0, -2)[real].float().log_softmax(dim=-1) for x in (one, two))
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1).mean()


@contextlib.contextmanager
def added(module: nn.Module, noise):
    """Meanwhile `noise` is added to the module's input."""
    hook = module.register_forward_pre_hook(lambda module, inputs: (inputs[0] + noise,))
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def dropout_off(model: nn.Module):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
