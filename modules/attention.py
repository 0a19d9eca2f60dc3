"""Causal multi-head self-attention.

    Attention(Q, K, V) = softmax(Q Kᵀ / √k) V      Vaswani et al. 2017, eq. 1, in each head

Differs from the paper in the causal mask: a position sees itself and what came before it.

Letters for shapes, here and everywhere: b batch, t time (positions of the queries), s positions
of the keys (s = t except in cached decoding), d hidden size, h heads, k head size (d = h k), v
vocabulary.
"""

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


def causal_attention(query, key, value, padding_mask, dropout):
    """Eq. 1 with a causal mask.

    query: (b, h, t, k); key, value: (b, h, s, k), their last position aligned with the last query.
    padding_mask: (b, 1, 1, s), added to the scores (0 at real keys, a large negative number at
    padding), or None. dropout: probability of dropping an attention weight. Returns (b, h, t, k).
    """
    t, s = query.shape[-2], key.shape[-2]
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (b, h, t, s)
    future = torch.ones(t, s, dtype=torch.bool, device=query.device).triu(diagonal=s - t + 1)
    scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    if padding_mask is not None:
        scores = scores + padding_mask
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights @ value  # (b, h, t, k)


class CausalSelfAttention(nn.Module):
    """Project one sequence to queries, keys and values, attend in h heads, and join the heads.

    `attend` is the seam for other kinds of attention: any function with the signature of
    `causal_attention`.
    """

    attend = staticmethod(causal_attention)

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

    def forward(self, hidden_states, attention_mask):
        """hidden_states: (b, t, d) -> (b, t, d); attention_mask: as in `attention`."""
        key = self.transform(hidden_states, self.key)
        value = self.transform(hidden_states, self.value)
        query = self.transform(hidden_states, self.query)
        return self.attention(key, query, value, attention_mask)
