"""An average of a model's trained weights that is a part of the model: of ema, swa and smart."""

import torch
from torch import nn


def trained(model) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class AveragedWeights(nn.Module):
    """Buffers, so that checkpoints have them; they begin as the weights of a model."""

    def __init__(self, model):
        super().__init__()
        for name, parameter in trained(model).items():
            self.register_buffer(name.replace(".", "/"), parameter.detach().clone())

    def of(self, model) -> dict[str, torch.Tensor]:
        """The average of each trained weight, by its name in the model."""
        return {name: getattr(self, name.replace(".", "/")) for name in trained(model)}

    @torch.no_grad()
    def move(self, model, share: float) -> None:
        """Let the average move by a share of its way to the weights as they are."""
        torch._foreach_lerp_(list(self.of(model).values()), list(trained(model).values()), share)
