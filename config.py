"""The shape of a GPT-2: one frozen dataclass, and the four published sizes.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and probabilities of a GPT-2; the defaults are the smallest published model.

    Attention and layers read only these attributes, so any object that has them will do.
    """

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(getattr(GPT2Config, name), int) and not (
                isinstance(value, int) and value > 0
            ):
                raise ValueError(f"{name} is {value!r}, expected a whole number above 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} "
                f"heads: choose a multiple of num_attention_heads"
            )


def _size(hidden_size: int, layers: int, heads: int) -> GPT2Config:
    return GPT2Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
    )


SIZES = {
    "gpt2": _size(768, layers=12, heads=12),
    "gpt2-medium": _size(1024, layers=24, heads=16),
    "gpt2-large": _size(1280, layers=36, heads=20),
    "gpt2-xl": _size(1600, layers=48, heads=25),
}
