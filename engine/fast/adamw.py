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
    """AdamW with the same state; what the kernel is not made for moves by AdamW's own text.

    gradients_stay: whether each gradient is the same tensor from step to step, as recorded steps
    have it. Then what a call of the kernel is given is put together once.
    """

    gradients_stay = False

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.kept: dict[int, Launch] = {}  # by group: the call that moved all of it last

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.kept = {}

    def _update(self, params: list[torch.Tensor], group: dict) -> None:
        kept = self.kept.get(id(group))
        if kept is not None and kept.serves(params, self.state):
            kept.advance()
            kept.move(group)
            return
        fused = [param for param in params if group["correct_bias"] and fits(param)]
        handled = set(fused)
        super()._update([param for param in params if param not in handled], group)
        steps = {param: (self._advanced(param)["step"], str(param.device)) for param in fused}
        launches = [
            Launch(list(alike), self.state)
            for _, alike in groupby(sorted(fused, key=steps.get), key=steps.get)
        ]
        for launch in launches:
            launch.move(group)
        self.kept.pop(id(group), None)
        if self.gradients_stay and [len(launch.params) for launch in launches] == [len(params)]:
            self.kept[id(group)] = launches[0]

    def zero_grad(self, set_to_none: bool = True) -> None:
        if set_to_none:
            self.kept.clear()  # their memory is wanted
        super().zero_grad(set_to_none)


class Launch:
    """One call of the kernel: parameters of one device and one step, with gradients and moments."""

    def __init__(self, params: list[torch.Tensor], state: dict):
        self.params, self.grads = params, [param.grad for param in params]
        self.states = [state[param] for param in params]
        self.moments = [[s[name] for s in self.states] for name in ("exp_avg", "exp_avg_sq")]
        before = self.states[0]["step"] - 1.0  # torch adds this step
        self.counters = list(torch.full((len(params),), before, device=params[0].device).unbind())

    def serves(self, params: list[torch.Tensor], state: dict) -> bool:
        """Whether these are the same parameters, gradients and, as far as one sees, moments."""
        if len(params) != len(self.params) or state.get(params[0]) is not self.states[0]:
            return False
        pairs = zip(params, self.params, self.grads, strict=True)
        return all(param is mine and param.grad is grad for param, mine, grad in pairs)

    def advance(self) -> None:
        for state in self.states:
            state["step"] += 1

    def move(self, group: dict) -> None:
        (beta1, beta2), step = group["betas"], self.states[0]["step"]
        adamw(
            self.params,
            self.grads,
            *self.moments,
            [],
            self.counters,
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
            torch._foreach_mul_(self.params, 1 - group["lr"] * group["weight_decay"])


def fits(param: torch.Tensor) -> bool:
    """Whether the kernel is made for a parameter and its gradient."""
    grad = param.grad
    return (
        param.device.type in ("cpu", "cuda")
        and param.layout == grad.layout == torch.strided
        and param.dtype == grad.dtype
        and param.is_floating_point()
        and param.is_contiguous()
        and grad.is_contiguous()
    )
