"""The GPT-2 of the plain completion of the course's starter: see benchmarks/starter.py."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class StarterAttention(nn.Module):
    """softmax(query @ key.T / sqrt(k) + masks) @ value, with every (t, t) matrix written out."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def transform(self, x, linear):
        return rearrange(linear(x), "b t (h k) -> b h t k", h=self.num_heads)

    def attention(self, key, query, value, attention_mask):
        t, k = query.shape[-2:]
        scores = query @ key.transpose(-1, -2) / math.sqrt(k)  # (b, h, t, t)
        future = torch.triu(torch.ones(t, t, device=scores.device), diagonal=1).bool()
        scores = scores.masked_fill(future, float("-inf"))
        scores = scores + attention_mask
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return rearrange(weights @ value, "b h t k -> b t (h k)")

    def forward(self, hidden_states, attention_mask):
        key = self.transform(hidden_states, self.key)
        value = self.transform(hidden_states, self.value)
        query = self.transform(hidden_states, self.query)
        return self.attention(key, query, value, attention_mask)


class StarterLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout before each residual sum."""

    def __init__(self, config):
        super().__init__()
        d, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.self_attention = StarterAttention(config)
        self.attention_dense = nn.Linear(d, d)
        self.attention_layer_norm = nn.LayerNorm(d, eps=eps)
        self.attention_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.interm_dense = nn.Linear(d, inner)
        self.out_dense = nn.Linear(inner, d)
        self.out_layer_norm = nn.LayerNorm(d, eps=eps)
        self.out_dropout = nn.Dropout(config.hidden_dropout_prob)

    def add(self, input, output, dense_layer, dropout):
        return input + dropout(dense_layer(output))

    def forward(self, x, attention_mask):
        attended = self.self_attention(self.attention_layer_norm(x), attention_mask)
        x = self.add(x, attended, self.attention_dense, self.attention_dropout)
        inner = self.interm_dense(self.out_layer_norm(x))
        inner = F.gelu(inner, approximate="tanh")  # gelu_new
        return self.add(x, inner, self.out_dense, self.out_dropout)


class StarterGPT2(nn.Module):
    """GPT-2: embeddings, layers, final norm, and the word embedding again as output matrix."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_dropout = nn.Dropout(config.hidden_dropout_prob)
        layers = [StarterLayer(config) for _ in range(config.num_hidden_layers)]
        self.gpt_layers = nn.ModuleList(layers)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        position_ids = torch.arange(config.max_position_embeddings).unsqueeze(0)
        self.register_buffer("position_ids", position_ids, persistent=False)
        self.apply(self.init_weights)

    def init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()

    def embed(self, input_ids):
        positions = self.position_ids[:, : input_ids.shape[1]]
        return self.embed_dropout(self.word_embedding(input_ids) + self.pos_embedding(positions))

    def get_extended_attention_mask(self, attention_mask, dtype):
        """Ones and zeros (b, t) -> 0 and -10000, to be added to scores (b, 1, 1, t)."""
        return (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0

    def encode(self, hidden_states, attention_mask):
        mask = self.get_extended_attention_mask(attention_mask, hidden_states.dtype)
        for layer in self.gpt_layers:
            hidden_states = layer(hidden_states, mask)
        return hidden_states

    def forward(self, input_ids, attention_mask):
        hidden = self.final_layer_norm(self.encode(self.embed(input_ids), attention_mask))
        last = attention_mask.sum(dim=1) - 1
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        return {"last_hidden_state": hidden, "last_token": hidden[rows, last]}

    def hidden_state_to_token(self, hidden_state):
        return hidden_state @ self.word_embedding.weight.T


@torch.no_grad()
def load_huggingface(gpt, state_dict):
    """Copy the weights of a HuggingFace GPT2Model or GPT2LMHeadModel into a StarterGPT2.

    HuggingFace's linears are Conv1D, which hold (in, out): ours are their transposes.
    """
    theirs = {name.removeprefix("transformer."): value for name, value in state_dict.items()}

    def copy(module, name, transpose=False):
        weight = theirs[f"{name}.weight"]
        module.weight.copy_(weight.T if transpose else weight)
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(theirs[f"{name}.bias"])

    copy(gpt.word_embedding, "wte")
    copy(gpt.pos_embedding, "wpe")
    copy(gpt.final_layer_norm, "ln_f")
    for i, layer in enumerate(gpt.gpt_layers):
        attention = layer.self_attention
        weights = theirs[f"h.{i}.attn.c_attn.weight"].T.chunk(3)
        biases = theirs[f"h.{i}.attn.c_attn.bias"].chunk(3)
        for j, linear in enumerate((attention.query, attention.key, attention.value)):
            linear.weight.copy_(weights[j])
            linear.bias.copy_(biases[j])
        copy(layer.attention_dense, f"h.{i}.attn.c_proj", transpose=True)
        copy(layer.interm_dense, f"h.{i}.mlp.c_fc", transpose=True)
        copy(layer.out_dense, f"h.{i}.mlp.c_proj", transpose=True)
        copy(layer.attention_layer_norm, f"h.{i}.ln_1")
        copy(layer.out_layer_norm, f"h.{i}.ln_2")
    return gpt
