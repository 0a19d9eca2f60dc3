"""GPT-2: token and position embeddings, a stack of causal layers, and one last normalisation.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". The output layer is the
token embedding again (tied weights).
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F

from config import SIZES, GPT2Config
from engine.errors import InputError
from engine.fast.last_token import is_plain, read_last, states_at
from models.base_gpt import GPTPreTrainedModel
from modules.gpt2_layer import GPT2Layer
from utils import get_extended_attention_mask

IGNORED_LABEL = -100
FEW_ROWS = range(5, 17)  # here a CPU multiplies with a tall matrix faster from the left


class GPT2Model(GPTPreTrainedModel):
    """Token ids (b, t) -> hidden states (b, t, d)."""

    def __init__(self, config):
        super().__init__(config)
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_dropout = nn.Dropout(config.hidden_dropout_prob)
        layers = (GPT2Layer(config) for _ in range(config.num_hidden_layers))
        self.gpt_layers = nn.ModuleList(layers)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if not self.word_embedding.weight.is_meta:
            self.init_weights()

    def embed(self, input_ids, positions=None):
        """Token ids (b, t) -> (b, t, d); positions (b, t) count from 0 unless they are given."""
        t, limit = input_ids.shape[1], self.config.max_position_embeddings
        if positions is None:
            if t > limit:
                raise InputError(f"a text of {t} tokens: this model has {limit} positions")
            positions = torch.arange(t, device=input_ids.device)
        return self.embed_dropout(self.word_embedding(input_ids) + self.pos_embedding(positions))

    def encode(self, hidden_states, attention_mask):
        """Run the layers: (b, t, d) -> (b, t, d). attention_mask: (b, t), 1 real, 0 padding.

        None: no padding. Padding on the right needs no mask: no real position looks that way.
        """
        return self._run(self.gpt_layers, hidden_states, attention_mask)

    def _run(self, layers, hidden_states, attention_mask):
        mask = None
        if attention_mask is not None:
            right = is_right_padded(attention_mask) if _right_padded is None else _right_padded
            if not right:
                mask = get_extended_attention_mask(attention_mask, hidden_states.dtype)
        for layer in layers:
            hidden_states = layer(hidden_states, mask)
        return hidden_states

    def forward(self, input_ids, attention_mask=None, *, last_only=False):
        """Returns last_hidden_state (b, t, d) and last_token (b, d), that of the last real token.

        At padding the hidden states are finite and mean nothing. last_only: nobody will look at
        them, which saves work in the last layer.
        """
        if attention_mask is None:
            positions = torch.full_like(input_ids[:, 0], input_ids.shape[1] - 1)
        else:
            positions = last_positions(attention_mask)
        hidden_states = self.embed(input_ids)
        if last_only and is_plain(self.gpt_layers[-1]):
            hidden_states = self._run(self.gpt_layers[:-1], hidden_states, attention_mask)
            last_token = read_last(self.gpt_layers[-1], hidden_states, attention_mask, positions)
            return {"last_token": self.final_layer_norm(last_token)}
        hidden_states = self.final_layer_norm(self.encode(hidden_states, attention_mask))
        last_token = states_at(hidden_states, positions)
        return {"last_hidden_state": hidden_states, "last_token": last_token}

    def hidden_state_to_token(self, hidden_state):
        """Logits over the vocabulary by the tied embedding: (..., d) -> (..., v)."""
        weight = self.word_embedding.weight
        if hidden_state.dim() == 2 and len(hidden_state) in FEW_ROWS:
            return (weight @ hidden_state.T).T.contiguous()
        return F.linear(hidden_state, weight)

    @classmethod
    def from_pretrained(cls, model: str = "gpt2", d: int = 768, l: int = 12, num_heads: int = 12):  # noqa: E741
        """A HuggingFace GPT-2 by hub name, size name or folder, with its weights, not training.

        The checkpoint's own config.json gives the shape; d (hidden size), l (layers) and num_heads
        are the course's signature, and are checked against it for the published sizes.
        """
        network = cls.from_huggingface(model)
        default = SIZES["gpt2"]
        asked = {"hidden_size": d, "num_hidden_layers": l, "num_attention_heads": num_heads}
        for name, value in asked.items():
            found = getattr(network.config, name)
            if value not in (found, getattr(default, name)):
                raise InputError(
                    f"{model}: {name} {value} was asked for, the checkpoint has {found}"
                )
        return network


def backbone(settings) -> GPT2Model:
    """The GPT-2 under a task's model, as the task's settings ask for it.

    They name a checkpoint: `model_size` (default gpt2), `d`, `l`, `num_heads` (from_pretrained).
    With `pretrained` False only its shape is built, `gpt_config`, to be filled from a checkpoint.
    """
    if getattr(settings, "pretrained", True):
        shape = {
            name: getattr(settings, name)
            for name in ("d", "l", "num_heads")
            if hasattr(settings, name)
        }
        return GPT2Model.from_pretrained(getattr(settings, "model_size", "gpt2"), **shape)
    return GPT2Model(GPT2Config(**settings.gpt_config))


def next_token_loss(logits, labels, reduction: str = "mean"):
    """Cross-entropy of logits (b, t, v) against labels (b, t), in nats.

    labels[:, i] is the token that follows position i, or IGNORED_LABEL where nothing is learnt.
    """
    return F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )


def is_right_padded(attention_mask) -> bool:
    """Whether every row of (…, t) is ones, then zeros: the one place where that is decided."""
    return bool((attention_mask[..., 1:] <= attention_mask[..., :-1]).all())


_right_padded: bool | None = None  # of the masks in a `known_padding`; None: look at each


@contextlib.contextmanager
def known_padding(right: bool | None):
    """Within it no mask is looked at to see whether the padding is on the right: it is told here.

    Looking at numbers on a GPU means to wait for all that was queued there. None: not known.
    """
    global _right_padded
    before, _right_padded = _right_padded, right
    try:
        yield
    finally:
        _right_padded = before


def last_positions(attention_mask):
    """The index of the last 1 in each row: (b, t) -> (b,)."""
    t = attention_mask.shape[1]
    return t - 1 - attention_mask.flip(1).argmax(dim=1)
