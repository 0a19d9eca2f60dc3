"""Gradient checkpointing: layers keep only their inputs, and compute the rest again for gradients.

    memory of l layers:  O(l · layer)  →  O(l · input + layer), for one more forward pass
                                                                    Chen et al. 2016, section 4

The numbers are those of the plain run: dropout's draws are repeated. So gpt2-large and gpt2-xl fit
where they otherwise would not, best with adapters, which spare the optimizer's moments too. Differs
from the paper in that every layer (or every n-th: `every`) is a segment, instead of √l layers:
inside a GPT-2 layer there is far more to keep than its input.

    python paraphrase_detection.py --model_size gpt2-large --extension gradient_checkpointing
"""

import functools
from dataclasses import dataclass

from torch.utils.checkpoint import checkpoint

from engine.errors import InputError
from engine.extension import Extension


@dataclass
class GradientCheckpointing(Extension):
    """every: each so-many-th layer computes again; 1 is all of them."""

    every: int = 1

    shardable = True

    def __post_init__(self):
        if self.every < 1:
            raise InputError(f"gradient_checkpointing: every={self.every}: expected at least 1")

    def prepare_model(self, model) -> None:
        for layer in model.gpt.gpt_layers[:: self.every]:
            layer.forward = functools.partial(_forgetful, layer, layer.forward)


def _forgetful(layer, forward, hidden_states, attention_mask):
    """The layer's forward pass; while it trains, its intermediate results are not kept."""
    if not layer.training:
        return forward(hidden_states, attention_mask)
    return checkpoint(forward, hidden_states, attention_mask, use_reentrant=False)
