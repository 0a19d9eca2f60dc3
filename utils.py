"""The helpers of the course's starter: attention masks, and the shapes of the published sizes."""

import torch

from config import SIZES


def model_size_to_params(model_size: str) -> dict:
    """The keyword arguments `d, l, num_heads` of a size name, for `GPT2Model.from_pretrained`.

    A folder or a name outside the published sizes gives {}: the checkpoint says its own shape.
    """
    if model_size not in SIZES:
        return {}
    config = SIZES[model_size]
    return {
        "d": config.hidden_size,
        "l": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
    }


def get_extended_attention_mask(attention_mask, dtype):
    """Turn a mask of ones (real) and zeros (padding) into one that is added to attention scores.

    (b, t) -> (b, 1, 1, t): 0 at real tokens, the lowest finite number of `dtype` at padding.
    """
    padding = attention_mask[:, None, None, :] == 0
    extended = torch.zeros(padding.shape, dtype=dtype, device=attention_mask.device)
    return extended.masked_fill(padding, torch.finfo(dtype).min)
