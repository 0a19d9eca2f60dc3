"""What K-FAC sees of a linear in a step: sums of a aᵀ and g gᵀ over the rows of its inputs.

a: inputs, and a 1 for the bias; g: gradients of the outputs (kfac.py).
"""

import torch
from torch import nn


class Collector:
    """A forward hook of one linear that adds up a aᵀ and g gᵀ over a step, and counts the rows.

    Every pass in training mode through which the step's gradient flows takes part: R-Drop's second
    one does, evaluation and SMART's passes, for which dropout is off, do not.
    """

    def __init__(self, name: str, linear: nn.Linear):
        self.name, self.linear = name, linear
        self.clear(active=True)
        linear.register_forward_hook(self)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weight and, if it is trained, the bias."""
        return [p for p in self.linear.parameters(recurse=False) if p.requires_grad]

    def clear(self, active: bool) -> None:
        self.active, self.mask, self.sums = active, None, None

    def __call__(self, linear, inputs, output):
        if self.active and linear.training and output.requires_grad:
            return _Watched.apply(output, inputs[0].detach(), self)
        return None

    def add(self, a, g) -> None:
        """a: (..., in), g: (..., out); in float32 at least, also under autocast."""
        with torch.autocast(g.device.type, enabled=False):
            a, g = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, g))
            real = torch.ones_like(g[..., :1])
            if self.mask is not None and self.mask.shape == g.shape[:-1]:
                real = self.mask[..., None].to(g.dtype)
            if len(self.trained) == 2:
                a = torch.cat([a, torch.ones_like(real)], dim=-1)
            a, g = (a * real).flatten(0, -2), g.flatten(0, -2)
            sums = [a.T @ a, g.T @ g, real.sum()]
        if self.sums is not None:
            sums = [x + y for x, y in zip(self.sums, sums, strict=True)]
        self.sums = sums


class _Watched(torch.autograd.Function):
    """A linear's output as it is; in the backward pass the collector sees its gradient.

    The input is kept by autograd, so that gradient checkpointing computes it again, too.
    """

    @staticmethod
    def forward(ctx, output, a, collector):
        ctx.save_for_backward(a)
        ctx.collector = collector
        return output.view_as(output)

    @staticmethod
    def backward(ctx, g):
        [a] = ctx.saved_tensors
        ctx.collector.add(a, g)
        return g, None, None
