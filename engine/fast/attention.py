"""Dense attention in less time and memory: the function of `modules.attention.causal_attention`."""

import torch
from torch.nn import functional as F

from modules.attention import causal_attention

BLOCK = 128  # queries


def fused_causal_attention(query, key, value, padding_mask, dropout):
    """`causal_attention` by torch's fused kernels, which never hold all the scores at once.

    Without padding to hide, the kernel builds the causal mask itself; a single query, the case of
    cached decoding, needs none. CPUs have no kernel with dropout, and a slow one in bfloat16:
    blocks take less time there.
    """
    t, s = query.shape[-2], key.shape[-2]
    if query.device.type == "cpu" and (dropout or query.dtype == torch.bfloat16):
        return blockwise_causal_attention(query, key, value, padding_mask, dropout)
    mask, causal = padding_mask, t > 1
    if causal and (padding_mask is not None or t != s):
        lowest = torch.finfo(query.dtype).min
        future = torch.ones(t, s, dtype=torch.bool, device=query.device).triu(diagonal=s - t + 1)
        mask = torch.zeros(t, s, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(future, lowest)
        if padding_mask is not None:
            mask = (mask + padding_mask).clamp(min=lowest)
        causal = False
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
    )


def blockwise_causal_attention(query, key, value, padding_mask, dropout):
    """`causal_attention` for 128 queries at a time, each block without the keys that follow it."""
    t, s = query.shape[-2], key.shape[-2]
    attended = []
    for i in range(-(-t // BLOCK)):
        start, stop = i * BLOCK, min((i + 1) * BLOCK, t)
        seen = s - t + stop
        mask = None if padding_mask is None else padding_mask[..., :seen]
        block = query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen]
        attended.append(causal_attention(*block, mask, dropout))
    return torch.cat(attended, dim=2)


DENSE = (causal_attention, fused_causal_attention)  # one function, computed differently
