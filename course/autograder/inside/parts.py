"""What the grader may ask a submission's process for: each is a function, tensors in, tensors out.

A part is run with what lies below it replaced by something simple, so that one mistake costs one
part: a layer gets `FixedAttention`, a model `FixedLayer`, a task's model `FixedGPT`.
"""

import importlib

import torch
from torch import nn

OPS = {}
ANSWERS = [3919, 8505]  # "no" and "yes"


class Unlike(Exception):
    """The submission's code has another form than the course's."""


def op(name: str):
    """Register a function as what is asked for by `name`."""

    def register(function):
        OPS[name] = function
        return function

    return register


def load(module: str, name: str):
    """A name of one of the submission's modules."""
    loaded = importlib.import_module(module)
    if not hasattr(loaded, name):
        raise Unlike(f"{module.replace('.', '/')}.py has no {name}")
    return getattr(loaded, name)


def config_of(settings: dict):
    return load("config", "GPT2Config")(**settings["config"])


def filled(module: nn.Module, tensors: dict, training: bool = False) -> nn.Module:
    """The module with the parameters that the grader sends, named "state.NAME"."""
    own = dict(module.named_parameters())
    for key, tensor in tensors.items():
        name = key.removeprefix("state.")
        if name == key:
            continue
        if name not in own or own[name].shape != tensor.shape:
            found = f"of shape {tuple(own[name].shape)}" if name in own else "missing"
            raise Unlike(
                f"{type(module).__name__}: {name} is {found}, expected shape {tuple(tensor.shape)}"
            )
        own[name].copy_(tensor)
    return module.train(training)


@op("attention.transform")
def transform(settings, tensors):
    module = load("modules.attention", "CausalSelfAttention")(config_of(settings))
    module = filled(module, tensors)
    return {"heads": module.transform(tensors["hidden"], module.query)}


@op("attention.attention")
def attention(settings, tensors):
    module = load("modules.attention", "CausalSelfAttention")(config_of(settings))
    module = filled(module, tensors, settings["training"])
    parts = (tensors[name] for name in ("key", "query", "value", "mask"))
    return {"attended": module.attention(*parts)}


@op("attention.forward")
def attention_forward(settings, tensors):
    module = load("modules.attention", "CausalSelfAttention")(config_of(settings))
    return {"attended": filled(module, tensors)(tensors["hidden"], tensors["mask"])}


class FixedAttention(nn.Module):
    """In the place of a layer's attention: x W, and 0 where the mask hides a position."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, hidden_states, attention_mask):
        return hidden_states @ self.weight * real(attention_mask)[..., None]


def real(attention_mask) -> torch.Tensor:
    """A mask that is added to scores (b, 1, 1, t) -> 1 at real positions, 0 at others: (b, t)."""
    if getattr(attention_mask, "ndim", None) != 4:
        found = tuple(getattr(attention_mask, "shape", ()))
        raise Unlike(
            f"a layer is given an attention mask of shape {found}, expected (b, 1, 1, t): see "
            f"utils.get_extended_attention_mask"
        )
    return (attention_mask[:, 0, 0] > -1).float()


@op("layer.forward")
def layer(settings, tensors):
    module = load("modules.gpt2_layer", "GPT2Layer")(config_of(settings))
    module.self_attention = FixedAttention(tensors["attention"])
    return {"hidden": filled(module, tensors)(tensors["hidden"], tensors["mask"])}


@op("layer.add")
def add(settings, tensors):
    module = load("modules.gpt2_layer", "GPT2Layer")(config_of(settings))
    module = filled(module, tensors, settings["training"])
    dense, dropout = module.attention_dense, module.attention_dropout
    return {"sum": module.add(tensors["input"], tensors["output"], dense, dropout)}


class FixedLayer(nn.Module):
    """In a layer's place: x + tanh(x W) + the mean over the real positions."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, hidden_states, attention_mask):
        weights = real(attention_mask)[..., None]
        mean = (hidden_states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return hidden_states + (hidden_states @ self.weight).tanh() + mean


def build_model(settings, tensors):
    model = load("models.gpt2", "GPT2Model")(config_of(settings))
    return filled(model, tensors)


@op("model.embed")
def embed(settings, tensors):
    return {"embedded": build_model(settings, tensors).embed(tensors["ids"])}


@op("model.logits")
def logits(settings, tensors):
    model = build_model(settings, tensors)
    return {"logits": model.hidden_state_to_token(tensors["hidden"])}


@op("model.stack")
def stack(settings, tensors):
    model = build_model(settings, tensors)
    for i in range(len(model.gpt_layers)):
        model.gpt_layers[i] = FixedLayer(tensors[f"layer.{i}"])
    model.embed = lambda input_ids: tensors["embedded"]
    return outputs(model(tensors["ids"], tensors["mask"]))


@op("model.whole")
def whole(settings, tensors):
    model, states = build_model(settings, tensors), {}

    def keep(name):
        def hook(module, given, output):
            states[name] = output

        return hook

    for i, layer in enumerate(model.gpt_layers):
        layer.register_forward_hook(keep(f"layer.{i}"))
    found = outputs(model(tensors["ids"], tensors["mask"]))
    found["logits"] = model.hidden_state_to_token(found["last_hidden_state"])
    return states | found


def outputs(found) -> dict:
    expected = ("last_hidden_state", "last_token")
    if not isinstance(found, dict) or not set(expected) <= found.keys():
        raise Unlike(f"GPT2Model.forward returns no dict with {' and '.join(expected)}")
    return {name: found[name] for name in expected}
