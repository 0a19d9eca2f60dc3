"""What optimizers for matrices share: which parameters are theirs, and AdamW for all others."""

import math
from dataclasses import asdict

import torch
from torch import nn

from engine.errors import InputError
from engine.extension import remedy_for_frozen
from engine.fast.adamw import FusedAdamW


class MatrixOptimizer(FusedAdamW):
    """The project's AdamW, in which the groups of a subclass's `rule` move by its `direction`.

    W ← W − lr · direction,  then the decay, as in AdamW.
    """

    rule: str

    def __init__(self, params, options, *, lr=1e-3, weight_decay=0.0):
        """params: as `groups` gives them; options: a dataclass, whose fields the groups get."""
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group.setdefault("rule", self.rule)
            if group["rule"] == self.rule:
                group.update(asdict(options))

    @property
    def coverage(self) -> dict[str, list[str]]:
        """The names of the parameters that move by each rule."""
        names: dict[str, list[str]] = {}
        for group in self.param_groups:
            names.setdefault(group["rule"], []).extend(group["param_names"])
        return names

    def direction(self, param, group) -> torch.Tensor | None:
        """Where a matrix moves to, of its shape; None: not in this step."""
        raise NotImplementedError

    def _init_group(self, params, group) -> None:
        if group["rule"] == "adamw":  # a rule begins its own state with the first gradient
            super()._init_group(params, group)

    def _update(self, params, group) -> None:
        if group["rule"] == "adamw":
            super()._update(params, group)
            return
        self.move_all(params, group)

    def move_all(self, params, group) -> None:
        """One step of a group of matrices; a subclass may move several at once."""
        for param in params:
            self.move_by_rule(param, group)

    def move_by_rule(self, param, group) -> None:
        """One step of a matrix; a subclass may overwrite it, or only `direction`."""
        direction = self.direction(param, group)
        if direction is not None:
            move(param, direction, group)


def move(param, direction, group) -> None:
    param.add_(direction, alpha=-group["lr"])
    if group["weight_decay"] and param.dim() > 1:  # vectors have none, as everywhere
        param.mul_(1 - group["lr"] * group["weight_decay"])


def matrices(model, max_dim: float = math.inf) -> dict[str, nn.Parameter]:
    """The trained matrices by name, embeddings apart, of which a side is at most max_dim long."""
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and p.dim() == 2 and p not in embeddings and min(p.shape) <= max_dim
    }


def check_covered(model, names, rule: str, limit: str = "") -> None:
    """Refuse a rule that covers nothing of GPT-2's layers; limit: what it asks of a matrix."""
    if not any("gpt_layers" in name for name in names):
        remedy = remedy_for_frozen(model, "leave it out")
        raise InputError(f"{rule}: no matrix of GPT-2's layers is trained{limit}: {remedy}")


def groups(model, covered: dict, rule: str) -> list[dict]:
    """Parameter groups with names: those covered by a rule, and all other trained ones."""
    named = model.named_parameters()
    others = {name: p for name, p in named if p.requires_grad and name not in covered}
    by_rule = {"params": list(covered.items()), "rule": rule}
    by_adamw = {"params": list(others.items()), "rule": "adamw"}
    return [by_rule, by_adamw] if others else [by_rule]


def running_mean(grad, state: dict, beta1: float) -> torch.Tensor:
    """Take G into the running mean; returns it free of the bias of its start."""
    state["exp_avg"].lerp_(grad, 1 - beta1)
    return state["exp_avg"] / (1 - beta1 ** state["step"])


def grafted(direction, grad, mean, *, state: dict, group: dict) -> torch.Tensor:
    """D made as long as AdamW's step at a learning rate of 1: Agarwal et al. 2020."""
    beta2 = group["betas"][1]
    state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = state["exp_avg_sq"].sqrt() + group["eps"]
    adamw = mean * math.sqrt(1 - beta2 ** state["step"]) / scale
    shortest = torch.finfo(direction.dtype).tiny
    return direction * (adamw.norm() / direction.norm().clamp(min=shortest))
