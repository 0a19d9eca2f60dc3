"""The weights by which every head looks at every earlier token, as pictures.

softmax(Q Kᵀ / √k) is what attention multiplies V with, so a model's own attention, whatever its
kind, gives these weights when V is the identity.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch

from models.gpt2 import GPT2Model

MOST_TOKENS = 24


@dataclass(frozen=True)
class Maps:
    """tokens: as the tokenizer writes them; images: of each layer and head, PNG as a data URI."""

    tokens: list[str]
    images: list[list[str]]
    cut: bool


@torch.no_grad()
def attention_weights(gpt: GPT2Model, token_ids: list[int]) -> torch.Tensor | None:
    """(layers, h, t, t); None where attention takes more keys than the text has (a prefix)."""
    kept, taken = [], [layer.self_attention for layer in gpt.gpt_layers]
    if any(hasattr(attention, "prefix") for attention in taken):
        return None

    def looking(attend):
        def attend_and_keep(query, key, value, padding_mask, dropout):
            identity = torch.eye(key.shape[-2], dtype=value.dtype).expand(*key.shape[:2], -1, -1)
            kept.append(attend(query, key, identity, padding_mask, 0.0)[0])
            return attend(query, key, value, padding_mask, dropout)

        return attend_and_keep

    before = [vars(attention).get("attend") for attention in taken]
    for attention in taken:
        attention.attend = looking(attention.attend)
    try:
        GPT2Model.forward(gpt, torch.tensor([token_ids]))  # all of it, the last layer too
    finally:
        for attention, own in zip(taken, before, strict=True):
            del attention.attend
            if own is not None:
                attention.attend = own
    return torch.stack(kept)


def maps(gpt: GPT2Model, token_ids: list[int], tokenizer) -> Maps | None:
    """Of the first tokens of a text; None where there are no weights to be shown."""
    shown = token_ids[:MOST_TOKENS]
    weights = attention_weights(gpt, shown)
    if weights is None:
        return None
    images = [[picture(head.numpy()) for head in layer] for layer in weights.float()]
    tokens = [tokenizer.decode([token]).replace("\n", "⏎") for token in shown]
    return Maps(tokens, images, cut=len(shown) < len(token_ids))


def picture(weights: np.ndarray) -> str:
    """(t, t) -> a PNG with a pixel for each weight: one colour, as opaque as the weight's root.

    The root lets small weights be seen; transparent, it serves on light and on dark paper.
    """
    from matplotlib.image import imsave

    pixels = np.zeros((*weights.shape, 4))
    pixels[..., :3] = (0.78, 0.2, 0.17)
    pixels[..., 3] = np.sqrt(weights.clip(0, 1))
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
