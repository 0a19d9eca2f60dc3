"""What a run depends on beside its flags, as digests: weights that stay, tokenizer, rows.

A checkpoint keeps them, so that a run never goes on, nor predicts, with something else in silence.
"""

import hashlib
import json

from engine.errors import InputError, quoted
from engine.hub import load_tokenizer
from engine.trees import tensors_digest

FROZEN, TOKENIZER, TRAIN_ROWS = "frozen weights", "tokenizer", "train rows"


def run_inputs(model, tokenizer, loaders: dict) -> dict[str, str]:
    """The digests of a run; loaders: at least those of train and dev, by which it is decided."""
    rows = {TRAIN_ROWS: loaders["train"].dataset, "dev rows": loaders["dev"].dataset}
    digests = {name: dataset.fingerprint() for name, dataset in rows.items()}
    return frozen_weights(model) | {TOKENIZER: tokenizer_digest(tokenizer)} | digests


def inputs_now(stored: dict, model, settings) -> dict[str, str]:
    """Those of a checkpoint's inputs on which its predictions depend, as they are here and now."""
    now = frozen_weights(model) if FROZEN in stored else {}
    if TOKENIZER in stored and hasattr(settings, "model_size"):
        now[TOKENIZER] = tokenizer_digest(load_tokenizer(settings.model_size))
    return now


def check_inputs(stored: dict, now: dict, path) -> None:
    """Refuse a checkpoint of other inputs; one that does not know some of them is not judged."""
    if not isinstance(stored, dict):
        raise InputError(f"{path}: found {quoted(stored)}, expected digests by name: train anew")
    changed = sorted(name for name in now.keys() & stored.keys() if now[name] != stored[name])
    if changed:
        raise InputError(
            f"{path}: these have changed since it was written: {', '.join(changed)}: put them back "
            f"as they were, or train anew"
        )


def frozen_weights(model) -> dict[str, str]:
    """The digest of the parameters that no checkpoint of this model holds; {} if it holds all."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return {FROZEN: tensors_digest(frozen)} if frozen else {}


def tokenizer_digest(tokenizer) -> str:
    """Of its tokens and merges, however a file or a version of the library writes them."""
    merges = []
    if hasattr(tokenizer, "backend_tokenizer"):
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    content = repr((sorted(tokenizer.get_vocab().items()), merges, tokenizer.eos_token_id))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
