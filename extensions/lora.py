"""LoRA: a frozen matrix changes by the product of two thin ones; DoRA learns its length apart.

    W' = W + s B A,   s = α / r             Hu et al. 2021, section 4.1, eq. 3
    s = α / √r                              rsLoRA: Kalajdzievski 2023, theorem 3.2
    W' = m · (W + s B A) / ‖W + s B A‖      DoRA: Liu et al. 2024, eq. 5, a norm for each row
    η_B = λ η_A                             LoRA+: Hayou et al. 2024, section 4
    s B A = U_r S_r V_rᵀ at the start, and  W − U_r S_r V_rᵀ  in the place of W = U S Vᵀ
                                            PiSSA: Meng et al. 2024, eq. 2–4

W is (out, in), A (r, in), B (out, r). At the start nothing has changed yet: B = 0, but for PiSSA,
whose A and B share s and the singular values evenly. In the gradient DoRA's norm counts as a
constant (eq. 11). Differs from the paper in A's first values (uniform, as in PEFT, for normal) and
in which matrices change: any, by default query and value. PiSSA's residual is computed as
W − s B₀ A₀, not stored: a checkpoint has the small B₀ and A₀, and W is the base model's.

    python classifier.py --extension lora:rank=16,alpha=32,targets=query+value
    python classifier.py --extension lora:dora=true,targets=all
    python classifier.py --extension lora:plus=16 --lr 1e-4
    python classifier.py --extension lora:init=pissa
    python classifier.py --extension lora:adapter=FOLDER    goes on from an adapter that PEFT wrote
"""

import math
from dataclasses import dataclass, fields

from engine.errors import InputError
from engine.extension import Extension
from engine.forms import AdamW
from extensions.lora_linear import LoRALinear, adapters, merge, principal, unmerge
from extensions.lora_peft import PLACES, export_peft, load_peft, parent_of

__all__ = ["LoRA", "LoRALinear", "adapters", "export_peft", "merge", "unmerge"]
INITS = ("zero", "pissa")
WITH_ADAPTER = ("adapter", "dropout", "plus")  # all other options are the adapter's own


@dataclass
class LoRA(Extension):
    """alpha 0 means 2 · rank; targets: names joined by "+", or "all"; plus λ, 0: one rate for all.

    adapter: a folder with adapter_config.json and adapter_model.safetensors.
    """

    rank: int = 8
    alpha: float = 0.0
    dropout: float = 0.0
    targets: str = "query+value"
    rslora: bool = False
    dora: bool = False
    plus: float = 0.0
    init: str = "zero"
    adapter: str = ""

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
        if self.init not in INITS or not 0 <= self.plus < math.inf:
            raise InputError(
                f"lora: init={self.init}, plus={self.plus}: expected {' or '.join(INITS)}, and a "
                f"factor above 0 or, for one rate, 0"
            )
        others = [f for f in fields(self) if f.name not in WITH_ADAPTER]
        changed = [f.name for f in others if getattr(self, f.name) != f.default]
        if self.adapter and changed:
            raise InputError(
                f"lora: adapter={self.adapter}: its own config says {', '.join(changed)}: leave "
                f"them out"
            )

    @property
    def scale(self) -> float:
        return (self.alpha or 2 * self.rank) / (math.sqrt(self.rank) if self.rslora else self.rank)

    def prepare_model(self, model) -> None:
        if self.adapter:
            load_peft(model, self.adapter, dropout=self.dropout)
            return
        for layer in model.gpt.gpt_layers:
            for name in self.names:
                parent = parent_of(layer, name)
                setattr(parent, name, self._adapted(getattr(parent, name), name))

    def _adapted(self, linear, name: str) -> LoRALinear:
        most = min(linear.weight.shape)
        if self.rank > most:
            raise InputError(f"lora: rank={self.rank}: expected at most {most}, {name}'s")
        adapted = LoRALinear(
            linear, self.rank, scale=self.scale, dropout=self.dropout, dora=self.dora
        )
        if self.init == "pissa":
            adapted.begin_at(*principal(linear.weight, self.rank, self.scale))
        return adapted

    def make_optimizer(self, model, lr: float, weight_decay: float):
        """The project's AdamW with LoRA+'s rate for all B; None without it."""
        if not self.plus:
            return None
        faster = {adapter.B.weight for adapter in adapters(model).values()}
        trained = [p for p in model.parameters() if p.requires_grad]
        others = [p for p in trained if p not in faster]
        groups = [
            {"params": others, "lr": lr},
            {"params": [p for p in trained if p in faster], "lr": lr * self.plus},
        ]
        return AdamW(groups, lr=lr, weight_decay=weight_decay)
