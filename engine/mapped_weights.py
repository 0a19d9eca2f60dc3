"""A GPT-2 whose matrices stay in its checkpoint's files until they are used: for little memory.

Each matrix of a layer is a view into its file, mapped into memory by itself. It is read from the
disk when it is used; once nothing refers to it, its memory is free again. So a technique that keeps
a layer in another form (extensions/qlora.py) goes through a model that is never whole in memory.
Embeddings, normalizations and biases are read at once.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from config import GPT2Config
from models.base_gpt import our_names
from models.gpt2 import GPT2Model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def mapped_gpt2(folder: Path, values: dict) -> GPT2Model | None:
    """The GPT-2 of a folder's safetensors, in evaluation mode; values: of its `GPT2Config`.

    None where that would not do: for other files, other types than float32, tensors that are not
    those of this shape, and numbers that are not finite. The usual reading says what is wrong.
    """
    with torch.device("meta"):  # shapes only
        network = GPT2Model(GPT2Config(**values)).eval()
    found: dict[str, torch.Tensor] = {}
    for name, file in _files(folder).items():
        try:
            names = our_names(name.removeprefix("transformer."))
        except LookupError:
            continue  # not a part of GPT-2
        tensor = _mapped(file, name)
        looked_at = _mapped(file, name)  # a view for this alone, so that the other stays unread
        if tensor.dtype != torch.float32 or not looked_at.isfinite().all():
            return None
        if ".c_" in name and tensor.dim() == 2:
            parts = tensor.t().tensor_split(len(names))
        else:
            parts = [part.clone() for part in tensor.tensor_split(len(names))]
        found |= zip(names, parts, strict=True)
    if _shapes(found) != _shapes(network.state_dict()):
        return None
    network.load_state_dict(found, assign=True)
    return network


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor; {} without safetensors."""
    if (folder / WEIGHTS).exists():
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / WEIGHTS)
    if (folder / INDEX).exists():
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in places.items()}
    return {}


def _mapped(file: Path, name: str) -> torch.Tensor:
    """A tensor that is mapped by itself: a file that is opened once stays mapped as a whole."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)
