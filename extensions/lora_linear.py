"""A linear with LoRA's adapter, and all adapters of a model: put into the weights and taken out."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    """A frozen linear with its adapter: (..., in) -> (..., out).

    W' = W + s (B A − B₀ A₀), and DoRA's length over it. A₀ and B₀, of PiSSA alone, are what the
    adapter began as: W − s B₀ A₀ is the residual, and W stays the base model's, as it was read.
    """

    def __init__(self, base: nn.Linear, rank: int, *, scale: float, dropout: float, dora: bool):
        super().__init__()
        out_features, in_features = base.weight.shape
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base, self.scale = base, scale
        self.A = nn.Linear(in_features, rank, bias=False, **place)
        self.B = nn.Linear(rank, out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.B.weight)
        self.register_buffer("A0", None)
        self.register_buffer("B0", None)
        self.dropout = nn.Dropout(dropout)
        self.magnitude = nn.Parameter(row_norms(base.weight.detach())) if dora else None

    @torch.no_grad()
    def begin_at(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Begin with A = A₀ = a (r, in) and B = B₀ = b (out, r), where W' is W.

        They are buffers, which checkpoints have: another machine's would differ in rounding.
        """
        self.A.weight.copy_(a)
        self.B.weight.copy_(b)
        self.A0, self.B0 = self.A.weight.detach().clone(), self.B.weight.detach().clone()

    def share_a(self, other: "LoRALinear") -> None:
        """Take another one's A in the place of the own; it stays a part of the other one alone."""
        del self.A
        self.__dict__["A"] = other.A

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of the whole change, s B A; with PiSSA of twice the rank."""
        if self.A0 is None:
            return self.A.weight, self.B.weight
        return torch.cat([self.A.weight, self.A0]), torch.cat([self.B.weight, -self.B0], dim=1)

    def _changed(self) -> torch.Tensor:
        """W + s B A (out, in)."""
        a, b = self.factors()
        return self.base.weight + self.scale * b @ a

    @property
    def weight(self) -> torch.Tensor:
        """W' (out, in)."""
        changed = self._changed()
        if self.magnitude is None:
            return changed
        return changed * (self.magnitude / row_norms(changed.detach()))[:, None]

    @property
    def bias(self) -> torch.Tensor:
        return self.base.bias

    def forward(self, x):
        change = self.scale * self.B(self.A(self.dropout(x)))
        if self.A0 is not None:
            change = change - self.scale * F.linear(F.linear(x, self.A0), self.B0)
        if self.magnitude is None:
            return self.base(x) + change
        stretch = self.magnitude / row_norms(self._changed().detach())
        return stretch * (F.linear(x, self.base.weight) + change) + self.base.bias


def row_norms(weight) -> torch.Tensor:
    """(out, in) -> (out,): the length of each output's weights."""
    return torch.linalg.vector_norm(weight, dim=1)


@torch.no_grad()
def principal(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in) and B (out, r) with s B A = U_r S_r V_rᵀ: PiSSA, Meng et al. 2024, eq. 2–3."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    u, values, vt = torch.linalg.svd(wide, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    a, b = root[:, None] * vt[:rank], u[:, :rank] * root
    return a.to(weight.dtype).contiguous(), b.to(weight.dtype).contiguous()


def adapters(model) -> dict[str, LoRALinear]:
    """Every adapter of a model by the name of its place."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@torch.no_grad()
def merge(model) -> dict[str, LoRALinear]:
    """Put plain linears with the weights W' in the adapters' places; returns these for `unmerge`.

    After it the model costs what it cost before, and saves as any GPT-2.
    """
    taken = adapters(model)
    for name, adapter in taken.items():
        linear = nn.Linear(*reversed(adapter.base.weight.shape), device="meta")
        linear.weight = nn.Parameter(adapter.weight.clone(), requires_grad=False)
        linear.bias = nn.Parameter(adapter.bias.clone(), requires_grad=False)
        model.set_submodule(name, linear)
    return taken


def unmerge(model, taken: dict[str, LoRALinear]) -> None:
    """The inverse of `merge`, bit for bit."""
    for name, adapter in taken.items():
        model.set_submodule(name, adapter)
