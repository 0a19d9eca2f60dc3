"""The optimizer of a run."""

from engine.errors import InputError
from engine.extension import Extension
from engine.fast.adamw import FusedAdamW
from engine.options import FitOptions


def make_optimizer(model, options: FitOptions, extensions: list[Extension]):
    """The optimizer that an extension brings, else AdamW over all trainable parameters."""
    brought = [e.make_optimizer(model, options.lr, options.weight_decay) for e in extensions]
    brought = [optimizer for optimizer in brought if optimizer is not None]
    if len(brought) > 1:
        raise InputError(f"{len(brought)} extensions bring an optimizer: choose one of them")
    if brought:
        return brought[0]
    trainable = [p for p in model.parameters() if p.requires_grad]
    return FusedAdamW(trainable, lr=options.lr, weight_decay=options.weight_decay)
