"""AdamW by torch's fused kernel: the arithmetic of optimizer.py in one pass over memory.

optimizer.py:  θ ← θ − lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)
torch:         θ ← θ − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε')

Both are the same for ε' = ε / √(1 − β₂ᵗ). The decay follows: θ ← (1 − lr λ) θ.
"""

import math
from itertools import groupby

import torch
from torch.optim.adamw import adamw

from optimizer import AdamW


class FusedAdamW(AdamW):
    """AdamW with the same state; what the kernel is not made for moves by AdamW's own text."""

    def _update(self, params: list[torch.Tensor], group: dict) -> None:
        fused = [param for param in params if group["correct_bias"] and fits(param)]
        handled = set(fused)
        super()._update([param for param in params if param not in handled], group)
        steps = {param: (self._advanced(param)["step"], str(param.device)) for param in fused}
        for (step, device), alike in groupby(sorted(fused, key=steps.get), key=steps.get):
            self._update_fused(list(alike), step, device, group)

    def _update_fused(self, params: list, step: int, device: str, group: dict) -> None:
        beta1, beta2 = group["betas"]
        counters = torch.full((len(params),), step - 1.0, device=device)  # torch adds this step
        adamw(
            params,
            [param.grad for param in params],
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            list(counters.unbind()),
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            weight_decay=0.0,
        )
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


def fits(param: torch.Tensor) -> bool:
    """Whether the kernel is made for a parameter and its gradient."""
    pair = (param, param.grad)
    return param.device.type in ("cpu", "cuda") and all(
        tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.dtype == param.dtype
        and tensor.is_floating_point()
        for tensor in pair
    )
