"""What lion, sophia and schedule_free share: each number moves by its own gradients."""

import torch


class EachNumberOptimizer(torch.optim.Optimizer):
    """A subclass says in `begin` what a parameter's state is at first, and in `move` how it moves.

    Weight decay λ is decoupled, as in AdamW: Loshchilov & Hutter 2017.
    """

    def __init__(self, params, *, lr: float, weight_decay: float = 0.0, **options):
        """options: of the groups, by name."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **options})

    def begin(self, param) -> dict:
        raise NotImplementedError

    def move(self, param, state: dict, group: dict) -> None:
        """One step by `param.grad`, in place."""
        raise NotImplementedError

    def init_state(self) -> None:
        """Make the state of all parameters, which otherwise begins with their first gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if not self.state[param]:
                    self.state[param] = self.begin(param)

    @torch.no_grad()
    def step(self, closure=None):
        """Move every parameter that has a gradient; returns the closure's loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if not self.state[param]:
                    self.state[param] = self.begin(param)
                self.move(param, self.state[param], group)
        return loss


def decay(param, group: dict) -> None:
    """θ ← (1 − η λ) θ."""
    if group["weight_decay"]:
        param.mul_(1 - group["lr"] * group["weight_decay"])
