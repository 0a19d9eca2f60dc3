"""What a HuggingFace folder's files may hold: numbers of the right kind and size."""

import json
from pathlib import Path

from engine.errors import is_number, quoted
from models.base_gpt import CONFIG

SLACK, SMALL = 20, 20_000_000  # parameters to a byte, and those that take no memory to speak of
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def _is_whole(value) -> bool:
    return type(value) is int and value >= 1


WHOLE = ("a whole number from 1 on", _is_whole)
SHARE = ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
POSITIVE = ("a number above 0", lambda value: is_number(value) and value > 0)
RULES = {
    **dict.fromkeys(("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"), WHOLE),
    "n_inner": ("a whole number from 1 on, or null", lambda v: v is None or _is_whole(v)),
    **dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), SHARE),
    **dict.fromkeys(("layer_norm_epsilon", "initializer_range"), POSITIVE),
}


def check_numbers(document: dict) -> None:
    """Raise a ValueError about the numbers of a config.json, by its own names, that can't be."""
    for name in RULES.keys() & document.keys():
        expected, is_right = RULES[name]
        if not is_right(document[name]):
            raise ValueError(f"{name} is {quoted(document[name])}, expected {expected}")


def check_shape(values: dict, folder: Path) -> None:
    """Raise a ValueError about a GPT2Config's values that no model in this folder can have.

    The weight files bound the shape: each parameter takes a byte there at least. So a wrong number
    of layers is noticed before any of them is built. A file that was cut short is left to those who
    read it, unless very much is missing.
    """
    check_numbers({CONFIG[name]: value for name, value in values.items()})
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise ValueError(f"n_embd is {width}, expected a multiple of n_head, {heads}")
    files = [path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)]
    size, wanted = sum(path.stat().st_size for path in files), parameters(values)
    if files and wanted > SLACK * size + SMALL:
        raise ValueError(
            f"it describes {wanted:,} parameters, but all weight files together have {size:,} bytes"
        )


def check_finite(model) -> None:
    """Raise a ValueError about weights that are NaN or infinite."""
    broken = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        raise ValueError(f"{len(broken)} tensors hold NaN or infinity, the first: {broken[0]}")


def parameters(values: dict) -> int:
    """How many weights a GPT-2 of this shape has: embeddings, l layers, the last normalisation."""
    d, inner = values["hidden_size"], values["intermediate_size"]
    layer = 4 * d * d + 2 * d * inner + inner + 9 * d
    embeddings = (values["vocab_size"] + values["max_position_embeddings"]) * d
    return embeddings + values["num_hidden_layers"] * layer + 2 * d


def read_document(path: Path) -> dict:
    """A JSON file that holds an object; anything else is a ValueError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("not a valid JSON file: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not a valid JSON file: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"found {type(document).__name__}, expected a JSON object")
    return document
