"""QLoRA: LoRA's adapters on linears whose frozen weights are kept in 4 bits.

    y = x Ŵᵀ + b + s x Aᵀ Bᵀ            Dettmers et al. 2023, eq. 5; Ŵ: normal_float.py

All linears of the layers are kept so, whichever of them have adapters; embeddings, normalizations
and biases stay as they are. Ŵ is computed for each product and forgotten, in the backward pass too,
so that a step's memory is that of its activations and one matrix. A checkpoint is read layer by
layer, if it is safetensors in float32. On a CPU freed memory goes back to the system at once, which
costs time.
Differs from the paper in that optimizer states are not paged.

    python classifier.py --extension qlora:rank=16,targets=all
    python classifier.py --model_size gpt2-xl --extension qlora --extension gradient_checkpointing
"""

from dataclasses import asdict, dataclass

import torch

from engine.devices import free_cache
from engine.errors import InputError
from engine.extension import Extension
from engine.parallel import return_freed_memory
from extensions.lora import LoRA
from extensions.lora_peft import PLACES, parent_of
from extensions.normal_float import NF4Linear


@dataclass
class QLoRA(Extension):
    """block: weights to one constant; double: the constants are quantized too; the rest: lora's."""

    rank: int = 8
    alpha: float = 0.0
    dropout: float = 0.0
    targets: str = "all"
    rslora: bool = False
    dora: bool = False
    plus: float = 0.0
    block: int = 64
    double: bool = True

    freezes_backbone = True
    replaces_weights = True
    recordable = True

    def __post_init__(self):
        self.rounding = {"block": self.block, "double": self.double}
        options = {name: v for name, v in asdict(self).items() if name not in self.rounding}
        self.adapters = LoRA(**options)
        if self.block < 2 or self.block % 2:
            raise InputError(f"qlora: block={self.block}: expected an even number from 2 on")

    def prepare_model(self, model) -> None:
        return_freed_memory()
        for layer in model.gpt.gpt_layers:
            for name in PLACES:
                parent = parent_of(layer, name)
                setattr(parent, name, NF4Linear(getattr(parent, name), **self.rounding))
            free_cache(model.gpt.word_embedding.weight.device)  # of the layer as it was
        self.adapters.prepare_model(model)
        free_cache(model.gpt.word_embedding.weight.device)
        for layer in model.gpt.gpt_layers:
            layer.out_dense.register_forward_hook(give_back)

    def make_optimizer(self, model, lr: float, weight_decay: float):
        return self.adapters.make_optimizer(model, lr, weight_decay)


@torch.compiler.disable
def give_back(module, inputs, output) -> None:
    """After a layer's last linear on a CPU: glibc would keep what the layer has freed."""
    if output.device.type == "cpu":
        free_cache(output.device)
