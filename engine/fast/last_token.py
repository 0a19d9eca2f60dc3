"""GPT-2's last layer for the last token of each text alone, where nothing else is asked for.

Its keys and values are needed at every position, all else at one: ten twelfths of the layer's work
are left out, 7 % of a GPT-2 of twelve layers.
"""

import torch

from utils import get_extended_attention_mask


class KnownKeys:
    """In a cache's place: the keys and values of all positions, (b, h, t, k) each."""

    def __init__(self, attention, hidden_states):
        self.key = attention.transform(hidden_states, attention.key)
        self.value = attention.transform(hidden_states, attention.value)

    def extend(self, key, value):
        """Those of the last token are known too."""
        return self.key, self.value


def states_at(hidden_states, positions):
    """The hidden state at one position a row: (b, t, d), (b,) -> (b, d)."""
    return hidden_states[torch.arange(len(positions), device=positions.device), positions]


def read_last(layer, hidden_states, attention_mask, positions):
    """What the layer gives at one position a row: (b, t, d), (b, t) or None, (b,) -> (b, d)."""
    last = states_at(hidden_states, positions)[:, None]  # (b, 1, d)
    known = KnownKeys(layer.self_attention, layer.attention_layer_norm(hidden_states))
    mask = None
    if attention_mask is not None:
        mask = get_extended_attention_mask(attention_mask, known.key.dtype)
    return layer(last, mask, known)[:, 0]


def is_plain(layer) -> bool:
    """Whether nobody else looks at the layer: no hook, no function in the place of its own."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "attend" not in vars(layer.self_attention) and not any(
        "forward" in vars(module) or any(getattr(module, name) for name in hooks)
        for module in layer.modules()
    )
