"""Causal multi-head self-attention.

    Attention(Q, K, V) = softmax(Q Kᵀ / √k) V      Vaswani et al. 2017, eq. 1, each head by itself

Differs from the paper in the causal mask: a position sees itself and what came before it.

Letters for shapes, here and everywhere: b batch, t time (positions of the queries), s positions
of the keys (s = t but in cached decoding), d hidden size, h heads, k head size (d = h k), v
vocabulary.
"""

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

BLOCK = 128  # queries


def causal_attention(query, key, value, padding_mask, dropout):
    """Eq. 1 as it is written, with the (t, s) matrix of scores in plain sight.

    query: (b, h, t, k); key, value: (b, h, s, k), their last position aligned with the last query.
    padding_mask: (b, 1, 1, s), added to the scores (0 at real keys, a huge negative number at
    padding), or None. dropout: probability of dropping an attention weight. Returns (b, h, t, k).
    """
    t, s = query.shape[-2], key.shape[-2]
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (b, h, t, s)
    scores = scores.masked_fill(_future(t, s, query.device), torch.finfo(scores.dtype).min)
    if padding_mask is not None:
        scores = scores + padding_mask
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights @ value  # (b, h, t, k)


def blockwise_causal_attention(query, key, value, padding_mask, dropout):
    """The same function, 128 queries at a time, each block without the keys that lie after it."""
    t, s = query.shape[-2], key.shape[-2]
    attended = []
    for i in range(-(-t // BLOCK)):
        start, stop = i * BLOCK, min((i + 1) * BLOCK, t)
        seen = s - t + stop
        mask = None if padding_mask is None else padding_mask[..., :seen]
        block = query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen]
        attended.append(causal_attention(*block, mask, dropout))
    return torch.cat(attended, dim=2)


def fused_causal_attention(query, key, value, padding_mask, dropout):
    """The same function through torch's fused kernels, which never hold all the scores at once.

    Without padding to hide, the kernel builds the causal mask by itself; a single query, the case
    of cached decoding, needs none. On CPUs there is no kernel with dropout, and a slow one in
    bfloat16: blocks take less time there.
    """
    t, s = query.shape[-2], key.shape[-2]
    if query.device.type == "cpu" and (dropout or query.dtype == torch.bfloat16):
        return blockwise_causal_attention(query, key, value, padding_mask, dropout)
    mask, causal = padding_mask, t > 1
    if causal and (padding_mask is not None or t != s):
        mask = torch.zeros(t, s, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(_future(t, s, query.device), torch.finfo(query.dtype).min)
        if padding_mask is not None:
            mask = (mask + padding_mask).clamp(min=torch.finfo(query.dtype).min)
        causal = False
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
    )


def _future(t: int, s: int, device) -> torch.Tensor:
    """(t, s), true where a key lies after the query; the last key belongs to the last query."""
    return torch.ones(t, s, dtype=torch.bool, device=device).triu(diagonal=s - t + 1)


class CausalSelfAttention(nn.Module):
    """Queries, keys and values from one sequence, attention in h heads, heads joined again.

    `attend` is the seam for other kinds of attention: any function with the signature of
    `causal_attention`.
    """

    attend = staticmethod(fused_causal_attention)

    def __init__(self, config):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def transform(self, x, linear):
        """Project (b, t, d) with one of the three linears and split it into heads (b, h, t, k)."""
        return rearrange(linear(x), "b t (h k) -> b h t k", h=self.num_attention_heads)

    def attention(self, key, query, value, attention_mask):
        """Attend in every head and join the heads: three times (b, h, t, k) -> (b, t, d).

        attention_mask: (b, 1, 1, s), added to the scores, or None where nothing is to be hidden.
        """
        dropout = self.dropout.p if self.training else 0.0
        attended = self.attend(query, key, value, attention_mask, dropout)
        return rearrange(attended, "b h t k -> b t (h k)")

    def forward(self, hidden_states, attention_mask, cache=None):
        """(b, t, d) -> (b, t, d); a cache, if any, adds the keys and values of earlier calls."""
        key = self.transform(hidden_states, self.key)
        value = self.transform(hidden_states, self.value)
        query = self.transform(hidden_states, self.query)
        if cache is not None:
            key, value = cache.extend(key, value)
        return self.attention(key, query, value, attention_mask)
