"""The model: embeddings, the stack of layers, the final norm, tied logits, the last real token."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

from config import GPT2Config
from course.autograder.checks.attention import CONFIG, HALF
from course.autograder.checks.hypotheses import Check, Fault, differ, difference, explain, is_close
from models.gpt2 import GPT2Model, last_positions

B, T = 3, 7
D, V, L = CONFIG["hidden_size"], CONFIG["vocab_size"], CONFIG["num_hidden_layers"]
EPS = CONFIG["layer_norm_eps"]


def ours(draw) -> GPT2Model:
    """Our model, proved equal to transformers' by the tests, with drawn weights."""
    names = {field.name for field in dataclasses.fields(GPT2Config)}
    model = GPT2Model(GPT2Config(**{name: CONFIG[name] for name in CONFIG if name in names})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(draw.normal(*parameter.shape, std=std))
        for name, parameter in model.named_parameters():
            if "norm.weight" in name:
                parameter.add_(1)
    return model


def sent(model: GPT2Model) -> dict[str, torch.Tensor]:
    return {f"state.{name}": value.detach() for name, value in model.named_parameters()}


def masks() -> torch.Tensor:
    """A whole row, one padded on the right, one on the left."""
    return torch.tensor([[1] * T, [1] * (T - 3) + [0] * 3, [0] * 2 + [1] * (T - 2)])


def measure_embed(ask, draw) -> dict[str, str]:
    model, ids = ours(draw), draw.integers(V, B, T)
    found, again = (
        ask("model.embed", {"ids": ids} | sent(model), config=HALF)["embedded"] for _ in range(2)
    )
    if found.shape == again.shape and differ(found, again):
        return {"embed": "the embedding is dropped in evaluation, expected in training only"}
    word, place = (part.weight.detach() for part in (model.word_embedding, model.pos_embedding))

    def expected(start=0, positions=1.0, words=1.0, backwards=False):
        at = torch.arange(start, start + T)
        return words * word[ids] + positions * place[at.flip(0) if backwards else at]

    known = [
        Fault("embed", "the position embedding is not added", {"positions": 0.0}),
        Fault("embed", "positions are counted from 1, expected from 0", {"start": 1}),
        Fault("embed", "positions are counted backwards", {"backwards": True}),
        Fault(
            "embed", "the word embedding is multiplied by √d, expected as it is", {"words": D**0.5}
        ),
        Fault("embed", "the word embedding is not added", {"words": 0.0}),
    ]
    return explain(found, expected, known).problems(["embed"])


def measure_logits(ask, draw) -> dict[str, str]:
    model, hidden = ours(draw), draw.normal(B, T, D)
    found = ask("model.logits", {"hidden": hidden} | sent(model), config=CONFIG)["logits"]
    weight = model.word_embedding.weight.detach()

    def expected(after=lambda x: x, norm=False):
        x = model.final_layer_norm(hidden).detach() if norm else hidden
        return after(x @ weight.T)

    known = [
        Fault("logits", "found probabilities, expected logits: no softmax", {"after": _softmax}),
        Fault("logits", "found log-probabilities, expected logits", {"after": _log_softmax}),
        Fault("logits", "the final norm is applied once more, to a normed state", {"norm": True}),
    ]
    problems = explain(found, expected, known).problems(["logits"])
    if "no mistake" in problems.get("logits", ""):
        return {"logits": "found another matrix than the word embedding: logits are h @ Eᵀ (tied)"}
    return problems


def _softmax(x):
    return x.softmax(-1)


def _log_softmax(x):
    return x.log_softmax(-1)


def stacked(model, given, *, layers=tuple(range(L)), norm=True, masked=True) -> torch.Tensor:
    """The stack of `FixedLayer`s and the final norm: (b, t, d)."""
    x = given["embedded"]
    real = (given["mask"] if masked else torch.ones(B, T))[..., None].float()
    for i in layers:
        mean = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        x = x + (x @ given[f"layer.{i}"]).tanh() + mean
    return model.final_layer_norm(x).detach() if norm else x


def measure_stack(ask, draw) -> dict[str, str]:
    model = ours(draw)
    given = {"ids": draw.integers(V, B, T), "mask": masks(), "embedded": draw.normal(B, T, D)}
    given |= {f"layer.{i}": draw.normal(D, D, std=D**-0.5) for i in range(L)}
    found = ask("model.stack", given | sent(model), config=CONFIG)
    states, last = found["last_hidden_state"], found["last_token"]
    known = [
        Fault("stack", "the final layer norm is missing", {"norm": False}),
        Fault("stack", "the layers run in the wrong order", {"layers": tuple(reversed(range(L)))}),
        Fault("stack", "the last layer is left out", {"layers": tuple(range(L - 1))}),
        Fault("stack", "the first layer is used again and again", {"layers": (0,) * L}),
        Fault("stack", "no layer is used", {"layers": ()}),
        Fault("stack", "the attention mask is not given to the layers", {"masked": False}),
    ]
    explained = explain(states, lambda **wrong: stacked(model, given, **wrong), known)
    problems = explained.problems(["stack"])
    if states.shape != (B, T, D):
        return problems | dict.fromkeys(("last_right", "last_left"), "the hidden states are wrong")
    return problems | last_token_problems(
        states, last, given["mask"], stacked(model, given, norm=False)
    )


def last_token_problems(states, last, mask, unnormed) -> dict[str, str]:
    """Of right and of left padding, judged by the submission's own hidden states."""
    if last.shape != (B, D):
        words = difference(last, torch.zeros(B, D))
        return dict.fromkeys(("last_right", "last_left"), f"last_token: {words}")
    places, counted = last_positions(mask), mask.sum(1) - 1
    choices = {
        "last_token is the first token, expected the last real one": torch.zeros_like(places),
        "last_token is the last position: the head sees padding": torch.full_like(places, T - 1),
        "last_token is at mask.sum() − 1, which is right for right padding only": counted,
        "last_token is one position too early": places - 1,
    }
    problems = {}
    for line, rows in {"last_right": [0, 1], "last_left": [0, 2]}.items():
        if is_close(last[rows], states[rows, places[rows]]):
            continue
        alike = [s for s, at in choices.items() if is_close(last[rows], states[rows, at[rows]])]
        if is_close(last[rows], unnormed[rows, places[rows]]):
            alike = ["last_token is taken before the final layer norm"]
        elif is_close(last[rows], states[rows].mean(1)):
            alike = ["last_token is the mean over all positions"]
        problems[line] = [*alike, difference(last[rows], states[rows, places[rows]])][0]
    return problems


def measure_whole(ask, draw) -> dict[str, str]:
    """End to end against our model, at real positions; where the first difference is."""
    model, given = ours(draw), {"ids": draw.integers(V, B, T), "mask": masks()}
    found = ask("model.whole", given | sent(model), config=CONFIG)
    wrong = []
    for activation in (nn.GELU(approximate="tanh"), nn.GELU()):
        for layer in model.gpt_layers:
            layer.interm_af = activation
        wrong.append(first_difference(found, states_of(model, given), given["mask"]))
        if not wrong[-1]:
            return {}
    return {"whole": wrong[0]}


def states_of(model: GPT2Model, given: dict) -> dict[str, torch.Tensor]:
    states = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, out, name=f"layer.{n}": states.update({name: out}))
        for n, layer in enumerate(model.gpt_layers)
    ]
    with torch.no_grad():
        states |= {"last_hidden_state": model(given["ids"], given["mask"])["last_hidden_state"]}
        states["logits"] = F.linear(states["last_hidden_state"], model.word_embedding.weight)
    for hook in hooks:
        hook.remove()
    return states


def first_difference(found: dict, expected: dict, mask) -> str:
    """The first of the states, in the order of computing, that differs at a real position."""
    for name, right in expected.items():
        state = found.get(name)
        if state is None or state.shape != right.shape:
            shape = None if state is None else tuple(state.shape)
            return f"{name}: found shape {shape}, expected {tuple(right.shape)}"
        real = mask.bool()
        if differ(state[real], right[real]):
            apart = (state[real] - right[real]).abs().nan_to_num(torch.inf).max()
            return f"differs from GPT-2 by {float(apart):.2e}, first in {name}, see the parts above"
    return ""


CHECKS = [
    Check("model", {"embed": "word embedding + position embedding"}, measure_embed),
    Check(
        "model",
        {
            "stack": "the layers in order, with the mask, then the final norm",
            "last_right": "last_token is the last real token, padding on the right",
            "last_left": "last_token is the last real token, padding on the left",
        },
        measure_stack,
    ),
    Check("model", {"logits": "logits are h @ Eᵀ with the word embedding (tied)"}, measure_logits),
    Check("model", {"whole": "the whole model equals GPT-2, layer by layer"}, measure_whole),
]
