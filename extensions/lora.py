"""LoRA: a frozen matrix changes by the product of two thin ones; DoRA learns its length apart.

    W' = W + s B A,   s = α / r             Hu et al. 2021, section 4.1, eq. 3
    s = α / √r                              rsLoRA: Kalajdzievski 2023, theorem 3.2
    W' = m · (W + s B A) / ‖W + s B A‖      DoRA: Liu et al. 2024, eq. 5, a norm for each row

W is (out, in), A (r, in), B (out, r), and B = 0 at the start, so that nothing has changed yet; in
the gradient DoRA's norm counts as a constant (eq. 11). Differs from the paper in A's first values
(uniform, as in PEFT, for normal) and in which matrices change: any, by default query and value.

    python classifier.py --extension lora:rank=16,alpha=32,targets=query+value
    python classifier.py --extension lora:dora=true,targets=all
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.extension import Extension
from engine.files import atomic_path, atomic_write

# Our linears, and where HuggingFace's GPT-2 has them: (its module, which third of it).
PLACES = {
    "query": ("attn.c_attn", 0),
    "key": ("attn.c_attn", 1),
    "value": ("attn.c_attn", 2),
    "attention_dense": ("attn.c_proj", None),
    "interm_dense": ("mlp.c_fc", None),
    "out_dense": ("mlp.c_proj", None),
}


@dataclass
class LoRA(Extension):
    """alpha 0 means 2 · rank; targets: names joined by "+", or "all"."""

    rank: int = 8
    alpha: float = 0.0
    dropout: float = 0.0
    targets: str = "query+value"
    rslora: bool = False
    dora: bool = False

    freezes_backbone = True
    recordable = True
    shardable = True

    def __post_init__(self):
        self.names = list(PLACES) if self.targets == "all" else self.targets.split("+")
        unknown = [name for name in self.names if name not in PLACES]
        if unknown:
            raise InputError(
                f"lora: targets={self.targets}: no {', '.join(unknown)}: join some of "
                f"{', '.join(PLACES)} by +, or give all"
            )
        if self.rank < 1 or self.alpha < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"lora: rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}: expected a "
                f"rank of at least 1, an alpha of at least 0 and a dropout in [0, 1)"
            )

    @property
    def scale(self) -> float:
        return (self.alpha or 2 * self.rank) / (math.sqrt(self.rank) if self.rslora else self.rank)

    def prepare_model(self, model) -> None:
        for layer in model.gpt.gpt_layers:
            for name in self.names:
                parent = layer.self_attention if name in ("query", "key", "value") else layer
                linear = getattr(parent, name)
                most = min(linear.weight.shape)
                if self.rank > most:
                    raise InputError(f"lora: rank={self.rank}: expected at most {most}, {name}'s")
                adapted = LoRALinear(
                    linear, self.rank, scale=self.scale, dropout=self.dropout, dora=self.dora
                )
                setattr(parent, name, adapted)


class LoRALinear(nn.Module):
    """A frozen linear with its adapter: (..., in) -> (..., out)."""

    def __init__(self, base: nn.Linear, rank: int, *, scale: float, dropout: float, dora: bool):
        super().__init__()
        out_features, in_features = base.weight.shape
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base, self.scale = base, scale
        self.A = nn.Linear(in_features, rank, bias=False, **place)
        self.B = nn.Linear(rank, out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.B.weight)
        self.dropout = nn.Dropout(dropout)
        self.magnitude = nn.Parameter(row_norms(base.weight.detach())) if dora else None

    def _changed(self) -> torch.Tensor:
        """W + s B A (out, in)."""
        return self.base.weight + self.scale * self.B.weight @ self.A.weight

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
        if self.magnitude is None:
            return self.base(x) + change
        stretch = self.magnitude / row_norms(self._changed().detach())
        return stretch * (F.linear(x, self.base.weight) + change) + self.base.bias


def row_norms(weight) -> torch.Tensor:
    """(out, in) -> (out,): the length of each output's weights."""
    return torch.linalg.vector_norm(weight, dim=1)


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


@torch.no_grad()
def export_peft(model, folder, base: str) -> None:
    """Write the adapters as PEFT reads them for HuggingFace's GPT-2; `base` names that checkpoint.

    HuggingFace keeps query, key and value in one matrix: there their adapters become one, whose
    rank is the sum of theirs, with A's rows one below the other and B's blocks on the diagonal.
    """
    gpt, tensors, ranks, alphas = model.gpt, {}, {}, {}
    with_dora = any(a.magnitude is not None for a in adapters(gpt).values())
    for i, layer in enumerate(gpt.gpt_layers):
        for place in dict.fromkeys(place for place, _ in PLACES.values()):
            linears = _linears_at(layer, place)
            adapted = [linear for linear in linears if isinstance(linear, LoRALinear)]
            if not adapted:
                continue
            joined = _joined(linears)
            name = f"base_model.model.transformer.h.{i}.{place}"
            tensors |= {f"{name}.{part}": tensor for part, tensor in joined.items()}
            ranks[place] = len(joined["lora_A.weight"])
            alphas[place] = adapted[0].scale * ranks[place]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "r": max(ranks.values()),
        "lora_alpha": max(alphas.values()),
        "lora_dropout": 0.0,
        "fan_in_fan_out": True,
        "use_dora": with_dora,
        "bias": "none",
        "inference_mode": True,
    }
    with atomic_path(Path(folder) / "adapter_model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with atomic_write(Path(folder) / "adapter_config.json") as file:
        json.dump(settings, file, indent=2)


def _linears_at(layer, place: str) -> list:
    """Our linears, adapted or not, in one of HuggingFace's modules, in its order."""
    thirds = {name: third for name, (module, third) in PLACES.items() if module == place}
    return [
        getattr(layer if third is None else layer.self_attention, name)
        for name, third in thirds.items()
    ]


def _joined(linears: list) -> dict[str, torch.Tensor]:
    """PEFT's tensors of one module: lora_A (r, in), lora_B (out, r), DoRA's lengths (out,)."""
    adapted = [linear for linear in linears if isinstance(linear, LoRALinear)]
    blocks = [
        linear.B.weight if linear in adapted else linear.weight.new_zeros(len(linear.weight), 0)
        for linear in linears
    ]
    joined = {
        "lora_A.weight": torch.cat([linear.A.weight for linear in adapted]),
        "lora_B.weight": torch.block_diag(*blocks),
    }
    if adapted[0].magnitude is not None:
        lengths = [m.magnitude if m in adapted else row_norms(m.weight) for m in linears]
        joined["lora_magnitude_vector"] = torch.cat(lengths)
    return joined
