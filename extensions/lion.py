"""Lion: each number moves by the learning rate, in the direction of a running mean's sign.

    c ← β₁ m + (1 − β₁) g
    θ ← θ − η (sign(c) + λ θ)
    m ← β₂ m + (1 − β₂) g                                   Chen et al. 2023, algorithm 2

One moment is kept, AdamW keeps two. The sign makes each step as long as the rate: learning rates
belong 3 to 10 times below AdamW's, and λ as much above (section 5). Differs from the paper in
nothing but that vectors do not decay, as everywhere here.

    python classifier.py --fine-tune-mode full-model --lr 1e-5 --extension lion
"""

from dataclasses import dataclass

import torch

from engine.errors import InputError
from engine.extension import Extension
from extensions.each_number import EachNumberOptimizer, decay


@dataclass
class LionExtension(Extension):
    """beta1: of the direction; beta2: of the running mean."""

    beta1: float = 0.9
    beta2: float = 0.99

    recordable = True
    shardable = True

    def __post_init__(self):
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(
                f"lion: beta1={self.beta1}, beta2={self.beta2}: expected both in [0, 1)"
            )

    def make_optimizer(self, model, lr: float, weight_decay: float):
        trained = [p for p in model.parameters() if p.requires_grad]
        betas = (self.beta1, self.beta2)
        return Lion(trained, lr=lr, weight_decay=weight_decay, betas=betas)


class Lion(EachNumberOptimizer):
    def begin(self, param) -> dict:
        return {"exp_avg": torch.zeros_like(param)}

    def move(self, param, state: dict, group: dict) -> None:
        (beta1, beta2), mean = group["betas"], state["exp_avg"]
        direction = param.grad.lerp(mean, beta1).sign_()
        decay(param, group)
        param.add_(direction, alpha=-group["lr"])
        mean.lerp_(param.grad, 1 - beta2)
