"""K-FAC: a linear layer's gradient is freed of what its inputs and its outputs have in common.

    A = E[a aᵀ],   G = E[g gᵀ]      a: inputs, and a 1 for the bias; g: gradients of the outputs
    W ← W − lr · D,   D = (G + √λ/π I)⁻¹ ∇W (A + π √λ I)⁻¹
    π² = (tr A / dim A) / (tr G / dim G)                    Martens & Grosse 2015, section 6.3

A and G are exponential averages over steps, of which min(1 − 1/k, decay) stays at the k-th look
(section 5); their inverses are taken anew every few steps. The loss is a mean over T targets, its
gradients times T are those of single ones: G = T Σ g gᵀ. Weights of nn.Linear, LoRA's too, are
covered together with their biases; everything else goes to AdamW (`coverage` and the optimizer's
repr name both kinds). Differs from the paper in that the Fisher matrix is the empirical one, of the
data's own labels, and each position of a text a row of its own; that λ is not searched for, but
λ = damping · (tr A / dim A) (tr G / dim G), so that one number serves all layers and a loss of any
size; and in the step: a running mean stands for ∇W, and D is made as long as AdamW's step
("grafting", Agarwal et al. 2020), so that AdamW's learning rates serve. The formula above by itself
is momentum=0,graft=false.

    python classifier.py --fine-tune-mode full-model --extension kfac
    python classifier.py --extension lora:targets=all --extension kfac:damping=0.1
"""

import math
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn

from engine.batches import count_targets
from engine.errors import InputError
from engine.extension import Extension
from extensions.kfac_collector import Collector
from extensions.matrix_optimizer import (
    MatrixOptimizer,
    check_covered,
    grafted,
    groups,
    move,
    running_mean,
)


@dataclass
class KfacExtension(Extension):
    """collect: steps between updates of A and G; every: steps between inverses; momentum: of M."""

    damping: float = 0.01
    decay: float = 0.95
    collect: int = 5
    every: int = 10
    momentum: float = 0.9
    graft: bool = True

    def __post_init__(self):
        if self.every < 1 or self.collect < 1:
            raise InputError(
                f"kfac: every={self.every}, collect={self.collect}: expected at least 1"
            )
        if not (0 < self.damping < math.inf and 0 <= self.decay < 1 and 0 <= self.momentum < 1):
            raise InputError(
                f"kfac: damping={self.damping}, decay={self.decay}, momentum={self.momentum}: "
                f"expected a damping above 0, and decay and momentum in [0, 1)"
            )

    def make_optimizer(self, model, lr: float, weight_decay: float):
        linears = {
            name: module
            for name, module in model.named_modules()
            if type(module) is nn.Linear and module.weight.requires_grad
        }
        check_covered(model, linears, "kfac")
        self.optimizer = Kfac(model, linears, self, lr=lr, weight_decay=weight_decay)
        return self.optimizer

    def before_backward(self, model, batch: dict) -> None:
        self.optimizer.note(count_targets(batch), batch.get("attention_mask"))


class Kfac(MatrixOptimizer):
    """AdamW, in which the linears given by name move as the formula above says."""

    rule = "kfac"
    loss_scale = 1.0  # of float16, for which engine/mixed_precision.py sets another

    def __init__(self, model, linears, options: KfacExtension, *, lr=1e-3, weight_decay=0.0):
        covered = {
            f"{name}.{part}": p
            for name, linear in linears.items()
            for part, p in linear.named_parameters(recurse=False)
            if p.requires_grad
        }
        params = groups(model, covered, self.rule)
        super().__init__(params, options, lr=lr, weight_decay=weight_decay)
        self.collectors = {m.weight: Collector(name, m) for name, m in linears.items()}
        self.targets = 0

    def __getstate__(self):
        return super().__getstate__() | {"collectors": self.collectors, "targets": self.targets}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Also forget what was collected, and collect again if it is the coming step's turn."""
        super().zero_grad(set_to_none)
        self.targets = 0
        for weight, collector in self.collectors.items():
            steps = self.state.get(weight, {}).get("step", 0)
            collector.clear(active=steps % self.param_groups[0]["collect"] == 0)

    def note(self, targets: int, mask=None) -> None:
        """Before each backward pass: its share of T, and which of its positions (b, t) are real."""
        self.targets += targets
        for collector in self.collectors.values():
            collector.mask = mask

    def move_by_rule(self, param, group) -> None:
        if param in self.collectors:  # a weight; its bias moves with it
            self._move(self.collectors[param], group)

    def _move(self, collector, group) -> None:
        parts, state = collector.trained, self.state[collector.linear.weight]
        grad = joined([part.grad for part in parts])  # (out, in), or (out, in + 1) with a bias
        if not state:
            if not grad.any():
                return  # LoRA's A, in its first step: nothing is known of it yet
            state.update(first_state(grad))
        if collector.active:
            self._average(collector, state, group)
        if state["step"] % group["every"] == 0:
            for side in ("input", "output"):
                state[f"{side}_inverse"] = damped_inverse(state[side], group["damping"])
        state["step"] += 1
        direction = self._direction(grad, state, group)
        for part, change in zip(parts, split_like(direction, parts), strict=True):
            move(part, change, group)

    def _average(self, collector, state, group) -> None:
        """Take what all workers collected in this step into A and G."""
        if collector.sums is None:
            raise InputError(
                f"kfac: {collector.name} has a gradient, but no pass in training mode went through "
                f"it: leave out the extension that computes past it"
            )
        inputs, outputs, rows = collector.sums
        targets = rows.new_tensor(self.targets)
        workers = all_reduce([inputs, outputs, rows, targets])
        state["averaged"] += 1
        stays = min(1 - 1 / state["averaged"], group["decay"])
        state["input"].lerp_(inputs / rows.clamp(min=1), 1 - stays)
        # the objective was multiplied by both: engine/gradients.py
        state["output"].lerp_(outputs * (targets / (workers * self.loss_scale) ** 2), 1 - stays)

    def _direction(self, grad, state, group) -> torch.Tensor:
        """D, as long as AdamW's step at a learning rate of 1 if it is grafted."""
        mean = running_mean(grad, state, group["momentum"])
        direction = state["output_inverse"] @ mean @ state["input_inverse"]
        if group["graft"]:
            direction = grafted(direction, grad, mean, state=state, group=group)
        return direction


def first_state(grad) -> dict:
    out_size, in_size = grad.shape
    return {
        "step": 0,
        "averaged": 0,
        "exp_avg": grad.new_zeros(grad.shape),
        "exp_avg_sq": grad.new_zeros(grad.shape),
        "input": grad.new_zeros(in_size, in_size),
        "output": grad.new_zeros(out_size, out_size),
    }


def damped_inverse(factor, damping: float) -> torch.Tensor:
    """(X + √damping · tr X / dim X · I)⁻¹, to which the rule with π comes down for both factors."""
    mean = factor.diagonal().mean()
    mean = torch.where(mean > 1e-30, mean, 1)  # of a factor that is 0
    damped = factor.clone()
    damped.diagonal().add_(math.sqrt(damping) * mean)
    triangle, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise InputError(
            f"kfac: a factor is not positive with damping={damping}: give a larger damping, or a "
            f"smaller --lr if the gradients are not finite"
        )
    return torch.cholesky_inverse(triangle).contiguous()  # as it comes back from a file


def joined(parts: list) -> torch.Tensor:
    """A weight (out, in) and perhaps a bias (out,) as one matrix, the bias its last column."""
    return torch.cat([part if part.dim() == 2 else part[:, None] for part in parts], dim=1)


def split_like(matrix, parts: list) -> list:
    """The inverse of `joined`."""
    in_size = parts[0].shape[1]
    return [matrix[:, :in_size], *(matrix[:, -1] for _ in parts[1:])]


def all_reduce(tensors: list) -> int:
    """Add up each tensor over all workers, in place; returns the number of workers."""
    if not dist.is_initialized():
        return 1
    for tensor in tensors:
        dist.all_reduce(tensor)
    return dist.get_world_size()
