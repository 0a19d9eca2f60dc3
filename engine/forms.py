"""What runs compute with: the faster forms of engine/fast, or without that folder the lesson's own.

AdamW       the optimizer of a run
accelerate  gives a task's model its fast form
DENSE       the functions that compute dense attention
"""

from modules.attention import causal_attention

try:
    from engine.fast.adamw import FusedAdamW as AdamW
    from engine.fast.attention import DENSE
    from engine.fast.gpt2 import accelerate
except ModuleNotFoundError as error:
    if not f"{error.name}.".startswith("engine.fast."):
        raise
    from optimizer import AdamW

    DENSE = (causal_attention,)

    def accelerate(model, *, extended=False):
        """Leave the model as the lesson has it."""
        return model


__all__ = ["DENSE", "AdamW", "accelerate"]
