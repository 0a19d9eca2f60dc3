"""LoRA's adapters in PEFT's files: adapter_config.json, adapter_model.safetensors.

HuggingFace's GPT-2 keeps query, key and value in one matrix, c_attn (in, 3 · out), where this
project has three linears. PEFT's factors are (r, in) and (out, r) in both, whatever fan_in_fan_out.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.errors import InputError
from engine.files import atomic_path, atomic_write
from extensions.lora_linear import LoRALinear, adapters, principal, row_norms

# Our linears, and where HuggingFace's GPT-2 has them: (its module, which third of it).
PLACES = {
    "query": ("attn.c_attn", 0),
    "key": ("attn.c_attn", 1),
    "value": ("attn.c_attn", 2),
    "attention_dense": ("attn.c_proj", None),
    "interm_dense": ("mlp.c_fc", None),
    "out_dense": ("mlp.c_proj", None),
}
MODULES = tuple(dict.fromkeys(module for module, _ in PLACES.values()))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "magnitude"}
NAME = re.compile(
    rf"(?:base_model\.model\.)?(?:transformer\.)?(h\.(\d+)\.({'|'.join(map(re.escape, MODULES))}))"
    rf"\.({'|'.join(PARTS)})(?:\.weight)?"
)
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # that leave the base weights alone


def parent_of(layer, name: str):
    """The module of a layer that has the linear of this name."""
    return layer.self_attention if PLACES[name][1] is not None else layer


def linears_at(layer, module: str) -> dict[str, torch.nn.Module]:
    """Our linears, adapted or not, in one of HuggingFace's modules, in its order, by name."""
    names = [name for name, (place, _) in PLACES.items() if place == module]
    return {name: getattr(parent_of(layer, name), name) for name in names}


# -- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeftAdapter:
    """What a folder has: each module's tensors by (layer, module), and how they are scaled."""

    folder: Path
    config: dict
    tensors: dict[tuple[int, str], dict[str, torch.Tensor]]

    @property
    def is_pissa(self) -> bool:
        return self.config.get("init_lora_weights") == "pissa"

    def scale(self, name: str, rank: int) -> float:
        """s of a module, by its name in HuggingFace's model, as PEFT finds it."""
        config, alpha = self.config, self.config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def read_peft(folder) -> PeftAdapter:
    """Read an adapter of HuggingFace's GPT-2; an InputError names what has no place here."""
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        stored = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder}: {error}: expected a folder with {CONFIG} and {WEIGHTS}, as PEFT writes it"
        ) from error
    _check_config(config, folder / CONFIG)
    tensors: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    for name, tensor in stored.items():
        found = NAME.fullmatch(name)
        if not found:
            raise InputError(
                f"{folder / WEIGHTS}: {name}: it has no place here: expected adapters of "
                f"h.0.attn.c_attn and the like, in {', '.join(MODULES)}"
            )
        _, layer, module, part = found.groups()
        tensors.setdefault((int(layer), module), {})[PARTS[part]] = tensor
    if not tensors:
        raise InputError(f"{folder / WEIGHTS}: no adapter in it")
    return PeftAdapter(folder, config, tensors)


def _check_config(config, path: Path) -> None:
    """Refuse what changes more than LoRA's two factors, DoRA's length and PiSSA's residual do."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise InputError(f"{path}: peft_type is {found!r}, expected 'LORA'")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS and start != "pissa":
        raise InputError(
            f"{path}: init_lora_weights is {start!r}, which changes the base weights: convert the "
            f"adapter to plain LoRA (path_initial_model_for_weight_conversion in PEFT)"
        )
    for name in ("layer_replication", "alora_invocation_tokens", "use_qalora"):
        if config.get(name):
            raise InputError(f"{path}: {name} is {config[name]!r}: there is no such thing here")
    alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise InputError(f"{path}: lora_alpha and alpha_pattern are {alphas}, expected numbers")


@torch.no_grad()
def load_peft(model, folder, *, dropout: float) -> None:
    """Put a folder's adapters into a model; query, key and value share the A of c_attn's."""
    adapter, layers = read_peft(folder), model.gpt.gpt_layers
    for (i, module), parts in sorted(adapter.tensors.items()):
        name = f"h.{i}.{module}"
        if i >= len(layers):
            raise InputError(f"{folder}: {name}: this model has {len(layers)} layers")
        linears = linears_at(layers[i], module)
        _check_parts(parts, linears, f"{Path(folder) / WEIGHTS}: {name}")
        rank = len(parts["A"])
        scale = adapter.scale(f"transformer.{name}", rank)
        if adapter.is_pissa:
            joined = torch.cat([linear.weight for linear in linears.values()])
            parts["A0"], parts["B0"] = principal(joined, rank, scale)
        _adapt(layers[i], linears, parts, scale=scale, dropout=dropout)


def _check_parts(parts: dict, linears: dict, where: str) -> None:
    """Refuse factors that are not there, or of other shapes than this model's matrix has."""
    outs = sum(len(linear.weight) for linear in linears.values())
    [ins] = {linear.weight.shape[1] for linear in linears.values()}
    rank = len(parts["A"]) if "A" in parts else 0
    expected = {"A": (rank, ins), "B": (outs, rank), "magnitude": (outs,)}
    found = {name: tuple(tensor.shape) for name, tensor in parts.items()}
    wanted = {name: expected[name] for name in {"A", "B", *parts}}
    if not rank or found != wanted:
        raise InputError(
            f"{where}: found {_shown(found)}, expected {_shown(wanted)}: "
            f"an adapter of another model, or a damaged one"
        )


def _shown(shapes: dict) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))


def _adapt(layer, linears: dict, parts: dict, *, scale: float, dropout: float) -> None:
    """Put adapters over linears that one module of HuggingFace's has together."""
    sizes = [len(linear.weight) for linear in linears.values()]
    rows = {name: t.split(sizes) for name, t in parts.items() if name not in ("A", "A0")}
    first = None
    for k, (name, linear) in enumerate(linears.items()):
        adapted = LoRALinear(
            linear, len(parts["A"]), scale=scale, dropout=dropout, dora="magnitude" in parts
        )
        if "A0" in parts:
            adapted.begin_at(parts["A0"], rows["B0"][k])
        adapted.A.weight.copy_(parts["A"])
        adapted.B.weight.copy_(rows["B"][k])
        if adapted.magnitude is not None:
            adapted.magnitude.copy_(rows["magnitude"][k])
        if first is None:
            first = adapted
        else:
            adapted.share_a(first)
        setattr(parent_of(layer, name), name, adapted)


# -- writing -----------------------------------------------------------------------------------


@torch.no_grad()
def export_peft(model, folder, base: str) -> None:
    """Write the adapters as PEFT reads them for HuggingFace's GPT-2; `base` names that checkpoint.

    Where query, key and value have an A of their own, the rank of the adapter of c_attn is the sum
    of theirs, with A's rows one below the other and B's blocks on the diagonal.
    """
    gpt, targets, tensors, ranks, alphas = model.gpt, set(), {}, {}, {}
    with_dora = any(a.magnitude is not None for a in adapters(gpt).values())
    for i, layer in enumerate(gpt.gpt_layers):
        for module in MODULES:
            linears = list(linears_at(layer, module).values())
            adapted = [linear for linear in linears if isinstance(linear, LoRALinear)]
            if not adapted:
                continue
            joined, name = _joined(linears), f"h.{i}.{module}"
            place = f"base_model.model.transformer.{name}"
            tensors |= {f"{place}.{part}": tensor for part, tensor in joined.items()}
            ranks[name] = len(joined["lora_A.weight"])
            alphas[name] = adapted[0].scale * ranks[name]
            targets.add(module)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": sorted(targets),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "r": max(ranks.values()),
        "lora_alpha": max(alphas.values()),
        "lora_dropout": 0.0,
        "fan_in_fan_out": True,
        "use_dora": with_dora,
        "bias": "none",
        "inference_mode": True,
    }
    with atomic_path(Path(folder) / WEIGHTS) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with atomic_write(Path(folder) / CONFIG) as file:
        json.dump(settings, file, indent=2)


def _joined(linears: list) -> dict[str, torch.Tensor]:
    """PEFT's tensors of one module: lora_A (r, in), lora_B (out, r), DoRA's lengths (out,)."""
    adapted = [linear for linear in linears if isinstance(linear, LoRALinear)]
    first, factors = adapted[0], {linear: linear.factors() for linear in adapted}
    if adapted == linears and all(one.A is first.A for one in adapted):
        a, b = factors[first][0], torch.cat([factor for _, factor in factors.values()])
    else:
        a = torch.cat([factor for factor, _ in factors.values()])
        blocks = [
            factors[m][1] if m in factors else m.weight.new_zeros(len(m.weight), 0) for m in linears
        ]
        b = torch.block_diag(*blocks)
    joined = {"lora_A.weight": a, "lora_B.weight": b}
    if first.magnitude is not None:
        lengths = [m.magnitude if m in factors else row_norms(m.weight) for m in linears]
        joined["lora_magnitude_vector"] = torch.cat(lengths)
    return {name: tensor.contiguous() for name, tensor in joined.items()}
