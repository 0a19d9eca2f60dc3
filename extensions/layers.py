"""How many layers predict: the first ones alone, all of them mixed, the lower ones frozen.

    use = n      layers n + 1 to L are left out; the last normalisation follows layer n
    mix          h = γ Σ_j softmax(w)_j · norm(h_j)        Peters et al. 2018, eq. 1 (ELMo)
    freeze = m   the embeddings and layers 1 to m stay: Howard & Ruder 2018, section 3.3

h_0 is the sum of the embeddings and h_j what layer j returns, at every position; w begins at 0, so
that all count alike, and γ at 1. As GPT-2 ties its output to the embedding, a frozen one is the
output layer of sonnets and paraphrases, too. Differs from the paper in the normalisation, which is
GPT-2's last one for each h_j, and in `freeze`: nothing is unfrozen later.

    python classifier.py --fine-tune-mode full-model --extension layers:use=8
    python classifier.py --fine-tune-mode full-model --extension layers:mix=true,freeze=6
"""

from dataclasses import dataclass

import torch
from torch import nn

from engine.errors import InputError
from engine.extension import Extension


@dataclass
class Layers(Extension):
    """use: 0 means all of them."""

    use: int = 0
    mix: bool = False
    freeze: int = 0

    recordable = True
    changes_parameters = True

    def prepare_model(self, model) -> None:
        gpt = model.gpt
        used = self.use or len(gpt.gpt_layers)
        if not 0 < used <= len(gpt.gpt_layers) or not 0 <= self.freeze <= used:
            raise InputError(
                f"layers: use={self.use}, freeze={self.freeze}: expected at most "
                f"{len(gpt.gpt_layers)} layers, and no more frozen than used"
            )
        gpt.gpt_layers = gpt.gpt_layers[:used]
        if self.freeze:
            for part in (gpt.word_embedding, gpt.pos_embedding, *gpt.gpt_layers[: self.freeze]):
                part.requires_grad_(False)
        if self.mix:
            gpt.final_layer_norm = LayerMix(gpt.gpt_layers, gpt.final_layer_norm)


class LayerMix(nn.LayerNorm):
    """The last normalisation, of what each layer read, which it notes, and the last returned."""

    def __init__(self, layers: nn.ModuleList, norm: nn.LayerNorm):
        place = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        super().__init__(norm.normalized_shape, eps=norm.eps, **place)
        self.weight, self.bias = norm.weight, norm.bias
        self.weights = nn.Parameter(torch.zeros(len(layers) + 1, **place))  # w
        self.scale = nn.Parameter(torch.ones((), **place))  # γ
        self.states: list[torch.Tensor | None] = [None] * len(layers)
        for j, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._noting(j))

    def _noting(self, j: int):
        def note(_, inputs) -> None:
            self.states[j] = inputs[0]

        return note

    def forward(self, last):
        """last: what the last layer returned (..., d); returns the mix (..., d)."""
        states, self.states = [*self.states, last], [None] * len(self.states)
        shares = self.weights.softmax(dim=0)
        normed = [super(LayerMix, self).forward(state) for state in states]
        mixed = sum(share * state for share, state in zip(shares, normed, strict=True))
        return self.scale * mixed
