"""GPT-2: token and position embeddings, a stack of causal layers, and a final normalisation.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". The output layer is the
token embedding again (tied weights).
"""

import torch
from torch import nn

from config import GPT2Config
from models.base_gpt import GPTPreTrainedModel, read_config, read_weights
from modules.gpt2_layer import GPT2Layer
from utils import get_extended_attention_mask


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
        self.init_weights()

    def embed(self, input_ids, positions=None):
        """Token ids (b, t) -> the sum of token and position embeddings (b, t, d).

        positions: those of the tokens, (t,) or (b, t); None: 0 to t − 1.
        """
        t, limit = input_ids.shape[1], self.config.max_position_embeddings
        if t > limit:
            raise ValueError(f"a text of {t} tokens: this model has {limit} positions")
        if positions is None:
            positions = torch.arange(t, device=input_ids.device)
        return self.embed_dropout(self.word_embedding(input_ids) + self.pos_embedding(positions))

    def encode(self, hidden_states, attention_mask):
        """Run the layers: (b, t, d) -> (b, t, d). attention_mask: (b, t), 1 real, 0 padding."""
        mask = get_extended_attention_mask(attention_mask, hidden_states.dtype)
        for layer in self.gpt_layers:
            hidden_states = layer(hidden_states, mask)
        return hidden_states

    def forward(self, input_ids, attention_mask=None):
        """Returns last_hidden_state (b, t, d) and last_token (b, d), that of the last real token.

        attention_mask: (b, t), 1 at real tokens and 0 at padding, where the hidden states are
        finite and mean nothing; None: no padding.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden_states = self.final_layer_norm(self.encode(self.embed(input_ids), attention_mask))
        last_token = states_at(hidden_states, last_positions(attention_mask))
        return {"last_hidden_state": hidden_states, "last_token": last_token}

    def hidden_state_to_token(self, hidden_state):
        """Logits over the vocabulary by the tied embedding: (..., d) -> (..., v)."""
        return hidden_state @ self.word_embedding.weight.T

    @classmethod
    def from_pretrained(cls, model="gpt2", d=768, l=12, num_heads=12):  # noqa: E741
        """Load a HuggingFace GPT-2, by hub name or folder, in evaluation mode and in float32.

        The checkpoint's own config.json determines the shape. d (hidden size), l (layers) and
        num_heads are the course's signature: if they are given, they must agree with it.
        """
        values, defaults = read_config(model), GPT2Config()
        asked = {"hidden_size": d, "num_hidden_layers": l, "num_attention_heads": num_heads}
        for name, value in asked.items():
            if value not in (values[name], getattr(defaults, name)):
                raise ValueError(f"{model}: {name} is {values[name]}, expected {value}")
        with torch.device("meta"):  # shapes only: the weights are taken as they are
            network = cls(GPT2Config(**values))
        network.load_state_dict(read_weights(model), assign=True)
        return network.eval()


def last_positions(attention_mask):
    """The index of the last 1 in each row: (b, t) -> (b,)."""
    t = attention_mask.shape[1]
    return t - 1 - attention_mask.flip(1).argmax(dim=1)


def states_at(hidden_states, positions):
    """The hidden state at one position of each row: (b, t, d), (b,) -> (b, d)."""
    return hidden_states[torch.arange(len(positions), device=positions.device), positions]
