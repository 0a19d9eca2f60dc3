"""LoReFT: at a few positions, a layer's output is edited in a subspace of few dimensions.

    Φ(h) = h + Rᵀ (W h + b − R h)                        Wu et al. 2024, eq. 2

R (r, d) has orthonormal rows: what of h lies in their span becomes W h + b, the rest stays. Edited
are the first and the last real positions of each text, both by one edit a layer. A language model
is edited at the first positions only, in training and in decoding alike, whether a prompt has so
many or not: its last ones move while a text grows, and an edit there would tell where it ends.

Differs from the paper in that there a prompt is edited at both ends, and a sonnet in training has
no prompt set apart; edits begin as the identity, W = R and b = 0; R is made orthonormal by QR from
a free matrix, so that no optimizer, decay or average of weights can spoil it.

    python paraphrase_detection.py --lr 1e-3 --extension reft:rank=4,layers=all,first=4,last=4
"""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from engine.errors import InputError
from engine.extension import Extension


@dataclass
class ReFT(Extension):
    """layers: indices from 0 joined by "+", or "all"; first, last: how many positions."""

    rank: int = 4
    layers: str = "all"
    first: int = 4
    last: int = 4
    dropout: float = 0.0

    freezes_backbone = True
    recordable = True
    shardable = True

    def __post_init__(self):
        if self.rank < 1 or min(self.first, self.last) < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"reft: rank={self.rank}, first={self.first}, last={self.last}, "
                f"dropout={self.dropout}: expected a rank of at least 1, counts of at least 0 and "
                f"a dropout in [0, 1)"
            )

    def prepare_model(self, model) -> None:
        gpt = model.gpt
        generates = hasattr(model, "generate")
        positions = Positions(self.first, 0 if generates else self.last)
        if positions.first + positions.last == 0:
            raise InputError(
                f"reft: first={self.first}, last={self.last}: no position is edited"
                + (": a model that generates is edited at its first ones" if generates else "")
            )
        for layer in self._chosen(gpt.gpt_layers):
            like = layer.out_layer_norm.weight
            if self.rank > len(like):
                raise InputError(f"reft: rank={self.rank}: expected at most {len(like)}")
            layer.edit = Edit(len(like), self.rank, self.dropout).to(like)
            layer.register_forward_hook(functools.partial(_edit_output, positions))
        gpt.encode = functools.partial(positions.known_while, gpt.encode)
        gpt.pos_embedding.register_forward_pre_hook(positions.see)

    def _chosen(self, layers) -> list:
        if self.layers == "all":
            return list(layers)
        names = self.layers.split("+")
        known = [str(i) for i in range(len(layers))]
        if len(set(names)) < len(names) or not set(names) <= set(known):
            raise InputError(
                f"reft: layers={self.layers}: expected all, or different ones of 0 to "
                f"{len(layers) - 1} joined by +"
            )
        return [layers[int(name)] for name in names]


class Positions:
    """Where layers are edited; set while a batch passes through them, and forgotten after."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.edited = None  # (b, t)
        self.seen = None  # (t,) or (b, t): the positions that were embedded last

    def see(self, embedding, inputs) -> None:
        """A hook of the position embedding: the one thing that always knows the positions."""
        [self.seen] = inputs

    def known_while(self, encode, hidden_states, attention_mask):
        """`GPT2Model.encode`, with the padding that only it sees told to the layers' edits."""
        real = attention_mask
        if real is None:
            real = torch.ones(hidden_states.shape[:2], device=hidden_states.device)
        self.edited = ends(real.bool(), first=self.first, last=self.last)
        try:
            return encode(hidden_states, attention_mask)
        finally:
            self.edited = None

    def current(self) -> torch.Tensor:
        """(b, t), true where the current output is edited; texts that grow do not pass encode."""
        if self.edited is not None:
            return self.edited
        if self.last:
            raise InputError("reft: last positions are for texts that do not grow: give last=0")
        return self.seen < self.first


def ends(real, *, first: int, last: int) -> torch.Tensor:
    """(b, t), true at the first and last real positions of each row, wherever its padding is."""
    count = real.cumsum(dim=1)
    return real & ((count <= first) | (count[:, -1:] - count < last))


def _edit_output(positions: Positions, layer, inputs, output):
    return torch.where(positions.current()[:, :, None], layer.edit(output), output)


class Edit(nn.Module):
    """Φ, (..., d) -> (..., d), in the precision of its parameters."""

    def __init__(self, size: int, rank: int, dropout: float):
        super().__init__()
        self.directions = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, size)))
        self.source = nn.Linear(size, rank)  # W and b
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.source.weight.copy_(self.directions)
            self.source.bias.zero_()

    def rotation(self) -> torch.Tensor:
        """R."""
        return orthonormal_rows(self.directions)

    def forward(self, hidden_states):
        rotation = self.rotation()
        with torch.autocast(hidden_states.device.type, enabled=False):
            h = hidden_states.to(rotation.dtype)
            edited = h + (self.source(h) - h @ rotation.T) @ rotation
        return self.dropout(edited).to(hidden_states.dtype)


def orthonormal_rows(matrix) -> torch.Tensor:
    """(r, d) -> (r, d) of the same span; rows that are orthonormal stay as they are."""
    q, r = torch.linalg.qr(matrix.T)
    return (q * r.diagonal().sign()).T
