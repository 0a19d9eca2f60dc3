"""What runs compute with: the faster forms of engine/fast, or without that folder the lesson's own.

AdamW              the optimizer of a run
accelerate         gives a task's model its fast form
DENSE              the functions that compute dense attention
score_next_tokens  a GPT-2's output layer with its loss: hidden states and labels -> `TokenScores`
"""

from engine.batches import TokenScores, next_token_loss
from modules.attention import causal_attention

try:
    from engine.fast.adamw import FusedAdamW as AdamW
    from engine.fast.attention import DENSE
    from engine.fast.chunked_loss import score_next_tokens
    from engine.fast.gpt2 import accelerate
except ModuleNotFoundError as error:
    if not f"{error.name}.".startswith("engine.fast."):
        raise
    from optimizer import AdamW

    DENSE = (causal_attention,)

    def accelerate(model, *, extended=False):
        """Leave the model as the lesson has it."""
        return model

    def score_next_tokens(gpt, hidden_states, labels):
        """By all logits at once."""
        logits = gpt.hidden_state_to_token(hidden_states)
        correct = (logits.argmax(dim=-1) == labels).sum()
        return TokenScores(next_token_loss(logits, labels, reduction="sum"), correct)


__all__ = ["DENSE", "AdamW", "accelerate", "score_next_tokens"]
