"""A GPT-2 that predicts next tokens, as pre-training and its benchmark run it.

With labels its forward pass returns `TokenScores` in the place of logits, and `forward_blocks` and
`loss_fn` are what `fit` is given for that. Logits are needed whole by nothing then.
"""

from torch import nn

from engine.batches import TokenScores
from engine.errors import InputError
from engine.extension import Extension, technique_of
from engine.forms import score_next_tokens
from engine.hub import backbone


class LanguageModel(nn.Module):
    """GPT-2 with its tied output layer."""

    def __init__(self, settings):
        super().__init__()
        self.gpt = backbone(settings)

    def forward(self, input_ids, attention_mask=None, labels=None):
        """Token ids (b, t) -> logits (b, t, v); with labels (b, t), their `TokenScores`."""
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        if labels is None:
            return self.gpt.hidden_state_to_token(hidden_states)
        return score_next_tokens(self.gpt, hidden_states, labels)


def forward_blocks(model, batch: dict) -> TokenScores:
    """Blocks have no padding."""
    return model(batch["token_ids"], labels=batch["labels"])


def loss_fn(scores: TokenScores, batch: dict):
    """Next-token cross-entropy summed over the batch, in nats."""
    return scores.loss


def check_penalties(extensions: list[Extension]) -> None:
    """Refuse techniques whose penalty looks at logits: here are none."""
    for extension in extensions:
        if type(extension).penalty is not Extension.penalty:
            raise InputError(
                f"--extension {technique_of(extension)}: it compares logits, which pre-training "
                f"does not keep: use it in a task"
            )
