"""GPT-2 faster, from outside: `accelerate`, and what it puts in the place of the lesson's model.

The order in which a model is changed is always the same: (1) the task builds it, with the lesson's
text; (2) `accelerate`; (3) the extensions, in the order of their flags, those that freeze the
backbone first; (4) the optimizer's moments; (5) `compiling.compiled`; (6) torch's
DistributedDataParallel. A technique therefore finds the fast form and may replace it.
"""

import torch
from torch.nn import functional as F

from engine.fast.attention import fused_causal_attention
from models.gpt2 import GPT2Model, last_positions, states_at
from utils import get_extended_attention_mask

FEW_ROWS = range(5, 17)  # a CPU multiplies so few rows with a tall matrix faster from the left


class FastGPT2(GPT2Model):
    """GPT-2 for texts that are padded on the right, as the engine's batches are.

    There no real position sees padding, so that no mask is needed.
    """

    def encode(self, hidden_states, attention_mask):
        return run(self.gpt_layers, hidden_states)

    def hidden_state_to_token(self, hidden_state):
        weight = self.word_embedding.weight
        if hidden_state.dim() == 2 and len(hidden_state) in FEW_ROWS:
            return (weight @ hidden_state.T).T.contiguous()
        return F.linear(hidden_state, weight)


class LastTokenGPT2(FastGPT2):
    """FastGPT2 for models that read `last_token` alone: the last layer is computed for it only.

    The layer's keys and values are needed at every position, everything else at one: that leaves
    out ten twelfths of its work, 7 % of a GPT-2 of twelve layers.
    """

    def forward(self, input_ids, attention_mask=None):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden_states = run(self.gpt_layers[:-1], self.embed(input_ids))
        last_token = last_layer(self.gpt_layers[-1], hidden_states, attention_mask)
        return {"last_token": self.final_layer_norm(last_token)}


def run(layers, hidden_states):
    for layer in layers:
        hidden_states = layer(hidden_states, None)
    return hidden_states


def last_layer(layer, hidden_states, attention_mask):
    """A layer's output at each text's last token: (b, t, d), (b, t) -> (b, d)."""
    attention, normalized = layer.self_attention, layer.attention_layer_norm(hidden_states)
    positions = last_positions(attention_mask)
    key = attention.transform(normalized, attention.key)
    value = attention.transform(normalized, attention.value)
    query = attention.transform(states_at(normalized, positions)[:, None], attention.query)
    mask = get_extended_attention_mask(attention_mask, query.dtype)
    attended = attention.attention(key, query, value, mask)
    output = states_at(hidden_states, positions)[:, None]  # (b, 1, d)
    output = layer.add(output, attended, layer.attention_dense, layer.attention_dropout)
    expanded = layer.interm_af(layer.interm_dense(layer.out_layer_norm(output)))
    return layer.add(output, expanded, layer.out_dense, layer.out_dropout)[:, 0]


def accelerate(model, *, extended=False):
    """Give a task's model the fast form of its GPT-2, `model.gpt`, with the same weights.

    extended: whether extensions follow, which may look at every layer's whole output. Without them
    a model with the attribute `reads_last_token_only` gets a `LastTokenGPT2`. A form that serves
    already is left alone, with what earlier extensions made of it.
    """
    if isinstance(model.gpt, FastGPT2) and not (extended and isinstance(model.gpt, LastTokenGPT2)):
        return model
    short = not extended and getattr(model, "reads_last_token_only", False)
    with torch.device("meta"):
        fast = (LastTokenGPT2 if short else FastGPT2)(model.gpt.config)
    for name, module in model.gpt.named_children():
        setattr(fast, name, module)
    for layer in fast.gpt_layers:
        layer.self_attention.attend = fused_causal_attention
    model.gpt = fast.train(model.gpt.training)
    return model
