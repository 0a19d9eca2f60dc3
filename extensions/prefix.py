"""Prefix tuning: every layer sees n learnt keys and values before those of the text.

    head = Attention(Q, [P_K; K], [P_V; V])          Li & Liang 2021, eq. 2–3; only P is trained

Nothing else changes: the text keeps its positions, and the causal order holds, since the prefix
lies before all of it. Differs from the paper in that P is learnt directly, without the network that
its section 4.3 puts before it while training, and begins as Normal(0, 0.02²).

    python paraphrase_detection.py --lr 1e-2 --extension prefix:length=10
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.extension import Extension


@dataclass
class Prefix(Extension):
    length: int = 10

    freezes_backbone = True
    recordable = True

    def __post_init__(self):
        if self.length < 0:
            raise InputError(f"prefix: length={self.length}: expected at least 0")

    @property
    def shardable(self) -> bool:
        return self.length > 0  # of nothing there are no shares

    def prepare_model(self, model) -> None:
        for layer in model.gpt.gpt_layers:
            attention = layer.self_attention
            if not getattr(attention, "takes_prefix", True):
                raise InputError("prefix: this run's attention takes no prefix")
            h, d = attention.num_attention_heads, attention.key.weight.shape[0]
            attention.prefix = LearntPrefix(
                self.length, heads=h, head_size=d // h, attend=attention.attend
            )
            attention.prefix.to(attention.key.weight)
            attention.attend = attention.prefix.before


class LearntPrefix(nn.Module):
    """P_K and P_V of one layer, (h, n, k) each, in front of another kind of attention."""

    def __init__(self, length: int, *, heads: int, head_size: int, attend):
        super().__init__()
        self.key = nn.Parameter(0.02 * torch.randn(heads, length, head_size))
        self.value = nn.Parameter(0.02 * torch.randn(heads, length, head_size))
        self.attend = attend

    def before(self, query, key, value, padding_mask, dropout):
        """The signature of `causal_attention`; the prefix is never padding."""
        b, n = len(query), self.key.shape[1]
        key = torch.cat([self.key.expand(b, -1, -1, -1), key], dim=2)
        value = torch.cat([self.value.expand(b, -1, -1, -1), value], dim=2)
        if padding_mask is not None:
            padding_mask = F.pad(padding_mask, (n, 0))
        return self.attend(query, key, value, padding_mask, dropout)
