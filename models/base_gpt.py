"""What every GPT here shares: initial weights, dtype, and HuggingFace's checkpoint format.

HuggingFace keeps query, key and value in one matrix `c_attn`, and all linears of a layer as
"Conv1D", that is transposed: (in, out) where torch's Linear has (out, in).
"""

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from config import GPT2Config
from engine.errors import InputError, some
from engine.files import atomic_path, atomic_write
from engine.hub import checkpoint_folder

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"

CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
    "max_position_embeddings": "n_positions",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_epsilon",
}
FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
EMBEDDINGS = {"wte": "word_embedding", "wpe": "pos_embedding"}
LINEARS = {"attn.c_proj": "attention_dense", "mlp.c_fc": "interm_dense", "mlp.c_proj": "out_dense"}
NORMS = {"ln_1": "attention_layer_norm", "ln_2": "out_layer_norm"}
ATTENTION = [f"self_attention.{part}" for part in ("query", "key", "value")]


class GPTPreTrainedModel(nn.Module):
    """A model with GPT-2's initialisation that reads and writes HuggingFace checkpoints."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def init_weights(self) -> None:
        """Normal(0, initializer_range), biases 0; what feeds a residual sum is divided by √(2 l).

        Radford et al. 2019, section 2.3, with l layers, each adding to the sum twice.
        """
        std = self.config.initializer_range
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                feeds_sum = name.endswith(("attention_dense", "out_dense"))
                nn.init.normal_(module.weight, std=residual_std if feeds_sum else std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)

    @classmethod
    def from_huggingface(cls, model: str):
        """Build the model from a folder, a bundled name or a hub name, in evaluation mode.

        Weights become float32.
        """
        folder = checkpoint_folder(model)
        config = read_config(folder / "config.json")
        state = from_huggingface_names(read_weights(folder), config, where=folder)
        with torch.device("meta"):
            network = cls(config)
        _check_shapes(state, network.state_dict(), where=folder)
        network.load_state_dict(state, assign=True)
        return network.eval()

    def save_pretrained(self, folder, end_token: int | None = None) -> None:
        """Write config.json and model.safetensors as `transformers` reads them.

        end_token: the id of the end-of-text token, by default GPT-2's if the vocabulary is.
        """
        folder = Path(folder)
        state = to_huggingface_names(self.state_dict(), self.config)
        with atomic_path(folder / WEIGHTS) as path:
            save_file(state, path, metadata={"format": "pt"})
        if end_token is None and self.config.vocab_size == 50257:
            end_token = 50256
        settings = {theirs: getattr(self.config, ours) for ours, theirs in CONFIG_NAMES.items()}
        settings |= FIXED | {
            "embd_pdrop": self.config.hidden_dropout_prob,
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "bos_token_id": end_token,
            "eos_token_id": end_token,
        }
        with atomic_write(folder / "config.json") as file:
            json.dump(settings, file, indent=2)


def read_config(path) -> GPT2Config:
    """GPT2Config from HuggingFace's config.json; a variant that we do not build is refused."""
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found: this folder is no HuggingFace checkpoint") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}): copy the checkpoint again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: no settings by name in it: copy the checkpoint again")
    if settings.get("model_type", "gpt2") != "gpt2":
        raise InputError(f"{path}: model_type {settings['model_type']!r}, expected 'gpt2'")
    fixed = FIXED | {"embd_pdrop": settings.get("resid_pdrop", 0.1)}
    for name, expected in fixed.items():
        if settings.get(name, expected) != expected:
            raise InputError(f"{path}: {name} is {settings[name]!r}, only {expected!r} is built")
    values = {ours: settings[name] for ours, name in CONFIG_NAMES.items() if name in settings}
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = 4 * values.get("hidden_size", GPT2Config.hidden_size)
    try:
        return GPT2Config(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder: safetensors, else pickles, in one file or in shards.

    Nothing in a file is ever executed: pickles go through torch's weights-only reader.
    """
    for name in (WEIGHTS, PICKLED):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return _read_tensors(folder / name)
        if index.exists():
            shards = [_read_tensors(folder / shard) for shard in _shard_names(index)]
            return {key: tensor for shard in shards for key, tensor in shard.items()}
    raise InputError(f"{folder}: neither {WEIGHTS} nor {PICKLED}: copy the weights into it")


def _shard_names(index: Path) -> list[str]:
    """The names of the files beside an index that hold a part of the weights each."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard outside of this folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of weights: copy it again") from error
    return names


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".bin":
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(tensors, dict):
                raise ValueError(f"it holds a {type(tensors).__name__}, no tensors by name")
            return tensors
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found: copy the checkpoint again") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = _first_line(error)
    except UnpicklingError as error:
        reason = f"a pickle of more than weights is refused: {_first_line(error)}"
    raise InputError(f"{path}: cannot be read ({reason}): copy the checkpoint again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def from_huggingface_names(theirs: dict, config, where) -> dict[str, torch.Tensor]:
    """HuggingFace's tensors under our names, float32, linears as (out, in), c_attn in three.

    All of them are copies: a view of a mapped file would keep the whole of it in memory.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items()}
    ours, missing = {}, []

    def take(name):
        if name not in theirs:
            missing.append(name)
            return torch.empty(0)
        return theirs.pop(name).float()

    for name, our_name in EMBEDDINGS.items():
        ours[f"{our_name}.weight"] = take(f"{name}.weight").clone()
    for kind in ("weight", "bias"):
        ours[f"final_layer_norm.{kind}"] = take(f"ln_f.{kind}").clone()
        for i in range(config.num_hidden_layers):
            there, here = f"h.{i}", f"gpt_layers.{i}"
            for name, our_name in NORMS.items():
                ours[f"{here}.{our_name}.{kind}"] = take(f"{there}.{name}.{kind}").clone()
            for name, our_name in LINEARS.items():
                ours[f"{here}.{our_name}.{kind}"] = _transposed(take(f"{there}.{name}.{kind}"))
            joined = take(f"{there}.attn.c_attn.{kind}")
            for our_name, part in zip(ATTENTION, joined.tensor_split(3, dim=-1), strict=True):
                ours[f"{here}.{our_name}.{kind}"] = _transposed(part)
    known = ("attn.bias", "attn.masked_bias", "lm_head.weight")  # masks, and the tied head
    unexpected = [name for name in theirs if not name.endswith(known)]
    if missing or unexpected:
        raise InputError(
            f"{where}: {len(missing)} tensors are missing ({some(missing)}), {len(unexpected)} "
            f"are not GPT-2's ({some(unexpected)}): expected a GPT-2 of "
            f"{config.num_hidden_layers} layers"
        )
    return ours


def to_huggingface_names(ours: dict, config) -> dict[str, torch.Tensor]:
    """The inverse of `from_huggingface_names`, with the prefix of GPT2LMHeadModel."""
    theirs = {f"{name}.weight": ours[f"{our}.weight"] for name, our in EMBEDDINGS.items()}
    for kind in ("weight", "bias"):
        theirs[f"ln_f.{kind}"] = ours[f"final_layer_norm.{kind}"]
        for i in range(config.num_hidden_layers):
            there, here = f"h.{i}", f"gpt_layers.{i}"
            for name, our_name in NORMS.items():
                theirs[f"{there}.{name}.{kind}"] = ours[f"{here}.{our_name}.{kind}"]
            for name, our_name in LINEARS.items():
                theirs[f"{there}.{name}.{kind}"] = _transposed(ours[f"{here}.{our_name}.{kind}"])
            parts = [ours[f"{here}.{our_name}.{kind}"] for our_name in ATTENTION]
            theirs[f"{there}.attn.c_attn.{kind}"] = _transposed(torch.cat(parts))
    return {f"transformer.{name}": tensor for name, tensor in theirs.items()}


def _transposed(tensor):
    """(out, in) <-> (in, out), a bias as it is; a copy."""
    turned = tensor.T if tensor.dim() == 2 else tensor
    return turned.clone(memory_format=torch.contiguous_format)


def _check_shapes(state: dict, expected: dict, where) -> None:
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if state[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(f"{where}: weights and config.json disagree: {some(wrong)}")
