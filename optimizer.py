"""AdamW: Adam with bias correction folded into the step size, and decoupled weight decay.

    m ← β₁ m + (1 − β₁) g
    v ← β₂ v + (1 − β₂) g²
    α ← lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ)
    θ ← θ − α m / (√v + ε)                   Kingma & Ba 2014, end of section 2 ("efficient")
    θ ← θ − lr λ θ                           Loshchilov & Hutter 2017, algorithm 2

Differs from torch.optim.AdamW: ε is added before √v is corrected for its bias, and the decay comes
after the update and is of the updated θ, as the course's reference has it.
"""

import math

import torch


def adamw_update(param, grad, exp_avg, exp_avg_sq, *, step_size, beta1, beta2, eps, decay):
    """Move `param` and its moments m and v in place; all four tensors have one shape.

    step_size is α, decay is lr·λ.
    """
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    param.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(eps), value=-step_size)
    if decay:
        param.mul_(1 - decay)


class AdamW(torch.optim.Optimizer):
    """Parameters without a gradient are left alone; sparse gradients are refused."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, correct_bias=True
    ):
        if lr < 0:
            raise ValueError(f"lr is {lr}, expected >= 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}, expected both in [0, 1)")
        if eps < 0 or weight_decay < 0:
            raise ValueError(f"eps is {eps}, weight_decay is {weight_decay}, expected >= 0")
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias
        )
        super().__init__(params, defaults)

    def init_state(self) -> None:
        """Make the moments of all parameters, which otherwise begin with their first gradient."""
        for group in self.param_groups:
            self._init_group([param for param in group["params"] if param.requires_grad], group)

    def _init_group(self, params: list[torch.Tensor], group: dict) -> None:
        for param in params:
            if not self.state[param]:
                self._begin(param)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; returns the closure's loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[torch.Tensor], group: dict) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        hyper = {"beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        for param in params:
            state = self._advanced(param)
            step_size = lr
            if group["correct_bias"]:
                step_size *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
            moments = state["exp_avg"], state["exp_avg_sq"]
            decay = lr * group["weight_decay"]
            adamw_update(param, param.grad, *moments, step_size=step_size, decay=decay, **hyper)

    def _advanced(self, param) -> dict:
        """The state of a parameter, begun if need be, with one step more."""
        if param.grad.is_sparse:
            raise RuntimeError(
                "AdamW does not support sparse gradients: use torch.optim.SparseAdam"
            )
        if not self.state[param]:
            self._begin(param)
        state = self.state[param]
        state["step"] += 1
        return state

    def _begin(self, param) -> None:
        zeros = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
        self.state[param] = {"step": 0, **zeros}
