"""One GPT-2 layer: attention, then a two-layer perceptron, each added to its own input.

    x ← x + dropout(W_o · attention(norm(x)))
    x ← x + dropout(W_2 · gelu(W_1 · norm(x)))         Radford et al. 2019, section 2.3

Layer normalisation comes before each part ("pre-norm"); the GELU is the tanh approximation,
0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), Hendrycks & Gimpel 2016, as in OpenAI's weights.
"""

from torch import nn

from modules.attention import CausalSelfAttention


class GPT2Layer(nn.Module):
    """(b, t, d) -> (b, t, d)."""

    def __init__(self, config):
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.self_attention = CausalSelfAttention(config)
        self.attention_dense = nn.Linear(d, d)
        self.attention_layer_norm = nn.LayerNorm(d, eps=eps)
        self.attention_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.interm_dense = nn.Linear(d, config.intermediate_size)
        self.interm_af = nn.GELU(approximate="tanh")
        self.out_dense = nn.Linear(config.intermediate_size, d)
        self.out_layer_norm = nn.LayerNorm(d, eps=eps)
        self.out_dropout = nn.Dropout(config.hidden_dropout_prob)

    def add(self, input, output, dense_layer, dropout):
        """The residual connection: `output`, projected and dropped out, on top of `input`."""
        return input + dropout(dense_layer(output))

    def forward(self, hidden_states, attention_mask):
        """hidden_states: (b, t, d) -> (b, t, d).

        attention_mask: (b, 1, 1, t), added to the scores, or None where nothing is to be hidden.
        """
        attended = self.self_attention(self.attention_layer_norm(hidden_states), attention_mask)
        hidden_states = self.add(
            hidden_states, attended, self.attention_dense, self.attention_dropout
        )
        expanded = self.interm_af(self.interm_dense(self.out_layer_norm(hidden_states)))
        return self.add(hidden_states, expanded, self.out_dense, self.out_dropout)
