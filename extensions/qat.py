"""Quantization-aware training: linears compute as they will on integers while they are trained.

    r = S (q − Z)                                   Jacob et al. 2018, eq. 1; training: section 3
    y = Q(α x) Q(W / α)ᵀ + b                        Quadapter: Park et al. 2022, figure 2

Q and its gradients are Esser et al. 2020 (LSQ), eq. 1–3: rounding.py.

Each row of W is symmetric, s = max|w| / Q_P with Q_N = Q_P = 2^(b−1) − 1. An input has one scale
and a zero point, for the range of its running extremes (Jacob et al. 2018, section 3.1); in the
first step it passes as it is, as nothing is known of it yet. The bias stays in floating point.

With `quadapter` only α is trained, and the task's head: behind both normalisations, which can take
α in afterwards, it shrinks channels whose outliers widen the range of all. After the first step it
starts in closed form, α² = max|w| / max|x| (SmoothQuant, Xiao et al. 2022, eq. 4, half migrated).
Differs from the paper in that Quadapter calibrates α block by block on the L2 error instead; in
learning log α; and in extremes that are kept for each channel, so that the range follows α and s
passes its gradient on to it. LoRA's change is merged before rounding (L4Q, Jeon et al. 2024).

    python classifier.py --fine-tune-mode full-model --extension qat:bits=4,activation_bits=8
    python classifier.py --lr 1e-2 --extension qat:activation_bits=4,quadapter=true
"""

from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.extension import Extension
from extensions.rounding import UNROUNDED, fake_quantize, largest, weight_scale


@dataclass
class QAT(Extension):
    """bits: of weights; activation_bits: of linears' inputs; momentum: of their extremes."""

    bits: int = 8
    activation_bits: int = 8
    momentum: float = 0.9
    quadapter: bool = False

    recordable = True

    def __post_init__(self):
        widths = (self.bits, self.activation_bits)
        if not all(2 <= bits <= 8 or bits >= UNROUNDED for bits in widths):
            raise InputError(
                f"qat: bits={self.bits}, activation_bits={self.activation_bits}: expected 2 to 8, "
                f"or {UNROUNDED} for no rounding"
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"qat: momentum={self.momentum}: expected one in [0, 1)")

    @property
    def freezes_backbone(self) -> bool:
        return self.quadapter

    @property
    def shardable(self) -> bool:
        return not self.quadapter  # which looks at whole weights after the first step

    def prepare_model(self, model) -> None:
        for layer in model.gpt.gpt_layers:
            behind_norm = (layer.self_attention, layer.interm_dense)
            for reader, linears in readers(layer):
                for linear in linears:
                    _refuse_unfit(linear)
                weight = linears[0].weight
                scaled = self.quadapter and reader in behind_norm
                source = InputQuantizer(weight.shape[1], self.activation_bits, scaled)
                reader.input_quantizer = source.to(weight.device)
                reader.register_forward_pre_hook(_quantize_input)
                for linear in linears:
                    linear.forward = QuantizedForward(linear, source, self.bits)

    def check(self, model) -> None:
        """Later extensions must have left the linears where they were."""
        for layer in model.gpt.gpt_layers:
            for _, linears in readers(layer):
                if not all(isinstance(linear.forward, QuantizedForward) for linear in linears):
                    raise InputError("qat: a linear was wrapped later: give --extension qat last")

    @torch.no_grad()
    def after_step(self, model) -> None:
        sources = [m for m in model.modules() if isinstance(m, InputQuantizer) and m.acts]
        new = [source for source in sources if not source.known()]
        for source, noted in zip(sources, noted_by_all(sources), strict=True):
            source.learn(noted, self.momentum)
        for source in new:
            source.known()  # so that no later forward pass has to look
        calibrate(model, new)


def readers(layer) -> list:
    """Pairs of a module and the linears that read its input."""
    attention = layer.self_attention
    alone = (layer.attention_dense, layer.interm_dense, layer.out_dense)
    shared = (attention, [attention.query, attention.key, attention.value])
    return [shared, *((linear, [linear]) for linear in alone)]


def _refuse_unfit(linear) -> None:
    if isinstance(linear.forward, QuantizedForward):
        raise InputError("qat: it is given twice: give it once")
    kind = type(linear)
    if not isinstance(linear, nn.Linear) and not hasattr(kind, "weight"):  # LoRA's is merged
        raise InputError(f"qat: it goes with linears and LoRA's, and found a {kind.__name__}")
    if getattr(getattr(linear, "dropout", None), "p", 0) > 0:
        raise InputError("qat: merged weights leave no place for lora's dropout: give dropout=0")


def _quantize_input(module, inputs):
    return (module.input_quantizer(inputs[0]), *inputs[1:])


def noted_by_all(sources: list) -> list[torch.Tensor]:
    """The extremes of the step over all workers, as one would note them of the whole batch."""
    notes = [source.taken() for source in sources]
    if not dist.is_initialized() or not notes:
        return notes
    joined = torch.cat([noted.flatten() for noted in notes])
    dist.all_reduce(joined, op=dist.ReduceOp.MAX)
    parts = joined.split([noted.numel() for noted in notes])
    return [part.view_as(noted) for part, noted in zip(parts, notes, strict=True)]


def calibrate(model, sources: list) -> None:
    """α² = max|w| / max|x| for each channel of these inputs: both spread equally far."""
    for source in sources:
        if source.log_alpha is not None:
            linears = [f.linear for f in quantized(model).values() if f.source is source]
            weights = torch.cat([linear.weight for linear in linears]).abs().amax(dim=0)
            inputs = source.extremes.amax(dim=0)
            ratio = weights.clamp(min=1e-5) / inputs.clamp(min=1e-5)
            source.log_alpha.copy_(0.5 * ratio.log())


class InputQuantizer(nn.Module):
    """Q(α x) of what one or more linears read, (..., in); notes the extremes of each step.

    extremes: (2, in), −min and max of each channel, so that the wider is always the larger.
    """

    def __init__(self, size: int, bits: int, scaled: bool):
        super().__init__()
        self.bits = bits
        self.register_buffer("extremes", torch.full((2, size), -torch.inf))
        self.log_alpha = nn.Parameter(torch.zeros(size)) if scaled else None
        self.acts = scaled or bits < UNROUNDED
        self.noted, self._known = None, False

    @property
    def alpha(self) -> torch.Tensor | None:
        return None if self.log_alpha is None else self.log_alpha.exp()

    def known(self) -> bool:
        """Whether there is a range; a GPU is asked only until there is."""
        self._known = self._known or bool(self.extremes.isfinite().all())
        return self._known

    def forward(self, x):
        if not self.acts:
            return x
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training and x.numel():
            self._note(x.detach().flatten(0, -2))
        if self.log_alpha is not None:
            x = x * self.alpha
        if self.bits >= UNROUNDED or not self.known():
            return x
        return fake_quantize(x, **self.grid())

    def _note(self, x) -> None:
        extremes = torch.stack([-x.amin(dim=0), x.amax(dim=0)])
        if self.noted is None or self.noted.device != x.device:
            self.noted = torch.full_like(extremes, -torch.inf)
        self.noted.copy_(torch.maximum(self.noted, extremes))  # in place: a recording writes there

    def taken(self) -> torch.Tensor:
        """The notes since the last time; −∞ where there were no rows."""
        if self.noted is None:
            return torch.full_like(self.extremes, -torch.inf)
        noted = self.noted.clone()
        self.noted.fill_(-torch.inf)
        return noted

    def learn(self, noted, momentum: float) -> None:
        """Move the extremes towards those of a step; the first are taken as they are."""
        moved = torch.where(self.extremes.isfinite(), noted.lerp(self.extremes, momentum), noted)
        self.extremes.copy_(torch.where(noted.isfinite(), moved, self.extremes))

    def grid(self) -> dict[str, torch.Tensor]:
        """For all of α x: the scale, and the integers of its ends, in which 0 stands for 0."""
        extremes = self.extremes if self.log_alpha is None else self.extremes * self.alpha
        below, above = extremes.amax(dim=1).clamp(min=0)
        levels = 2**self.bits - 1
        scale = ((below + above) / levels).clamp(min=torch.finfo(extremes.dtype).tiny)
        zero_point = (below / scale).detach().round()
        return {"scale": scale, "low": -zero_point, "high": levels - zero_point}


@dataclass(eq=False)
class QuantizedForward:
    """What a linear, adapted or not, does in the place of its own forward."""

    linear: nn.Module
    source: InputQuantizer
    bits: int

    def __call__(self, x):
        weight, alpha = self.linear.weight, self.source.alpha
        if self.bits < UNROUNDED:
            scale = weight_scale(divided(weight.detach(), alpha), self.bits)
            limit = largest(self.bits)
            weight = fake_quantize(divided(weight, alpha), scale, -limit, limit)
        elif alpha is None:
            return type(self.linear).forward(self.linear, x)
        else:
            weight = weight / alpha
        return F.linear(x, weight, self.linear.bias)


def divided(weight, alpha):
    return weight if alpha is None else weight / alpha


def quantized(model) -> dict[str, QuantizedForward]:
    """Every quantized linear of a model by the name of its place."""
    modules = model.named_modules()
    return {name: m.forward for name, m in modules if isinstance(m.forward, QuantizedForward)}
