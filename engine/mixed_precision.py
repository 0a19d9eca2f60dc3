"""Training in 16 bits: autocast to bfloat16 or float16, and the loss scale that float16 needs.

    g ← ∇(S · objective) / S                               Micikevicius et al. 2018, section 3.2
    S ← S / 2 if some g is not finite, and no step is made;  S ← 2 S after 2,000 steps in a row

float16 ends at 65,504 and knows nothing below 6e-8: unscaled, small gradients would be 0.
"""

import contextlib

import torch

LEAST_SCALE = 2.0**-24  # the smallest number of float16


def autocast(flags, device: torch.device, *, cache: bool = True):
    """The context of a training pass; flags: with bf16 and fp16; cache: of weights in 16 bits."""
    if not (flags.bf16 or flags.fp16):
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if flags.bf16 else torch.float16
    return torch.autocast(device.type, dtype, cache_enabled=cache)


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler, which tells of each step whether it was made; one that is off makes all.

    S is one tensor on the device from the start: a recorded backward pass reads it where it lies.
    All workers skip the same steps, since each looks at the gradients of all.
    """

    def __init__(self, device: torch.device, *, enabled: bool):
        super().__init__(device.type, enabled=enabled)
        if enabled:
            self.scale(torch.ones((), device=device))

    def try_step(self, optimizer) -> bool:
        """Step on gradients that `unscale_` has seen; False: one was not finite, nothing moved.

        An optimizer that watches the backward pass finds its S as `loss_scale`. The one look at the
        device of a step is here.
        """
        optimizer.loss_scale = before = self.get_scale()
        self.step(optimizer)
        self.update()
        return self.get_scale() >= before

    @property
    def is_exhausted(self) -> bool:
        """Whether gradients overflow however small S is."""
        return self.get_scale() < LEAST_SCALE
