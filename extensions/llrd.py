"""Layer-wise learning-rate decay: the lower a layer, the slower it learns.

    η_l = η · ξ^(L − l)          Howard & Ruder 2018, section 3.2 ("discriminative fine-tuning")

L layers; the head and the last normalisation learn at η, the highest layer (l = L − 1) at ξ η, the
embeddings at ξ^(L + 1) η. Differs from the paper in ξ: 1 / 2.6 there, for an LSTM of three layers;
for Transformers 0.8 to 0.95 is usual (Clark et al. 2020, appendix A).

    python classifier.py --fine-tune-mode full-model --extension llrd:decay=0.9
"""

from dataclasses import dataclass

from engine.errors import InputError
from engine.extension import Extension
from engine.forms import AdamW


@dataclass
class LayerwiseDecay(Extension):
    decay: float = 0.9

    recordable = True
    shardable = True

    def __post_init__(self):
        if not 0 < self.decay <= 1:
            raise InputError(f"llrd: decay={self.decay}: expected more than 0 and at most 1")

    def make_optimizer(self, model, lr: float, weight_decay: float):
        """The project's AdamW with a group of parameters for each depth."""
        depths: dict[int, list] = {}
        layers = len(model.gpt.gpt_layers)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                depths.setdefault(depth(name, layers), []).append(parameter)
        groups = [
            {"params": parameters, "lr": lr * self.decay**steps}
            for steps, parameters in sorted(depths.items())
        ]
        return AdamW(groups, lr=lr, weight_decay=weight_decay)


def depth(name: str, layers: int) -> int:
    """How many times a parameter's rate is decayed, by its name: 0 at the top."""
    parts = name.split(".")
    if "gpt_layers" in parts:
        return layers - int(parts[parts.index("gpt_layers") + 1])
    embeds = "word_embedding" in parts or "pos_embedding" in parts
    return layers + 1 if embeds else 0
