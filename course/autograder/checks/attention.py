"""Attention: split into heads, scaled, masked, normalized, joined (Vaswani et al. 2017, eq. 1)."""

import math

import torch
from einops import rearrange
from torch.nn import functional as F

from course.autograder.checks.dropout import problem_of
from course.autograder.checks.hypotheses import Check, Fault, differ, explain

CONFIG = {
    **{"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 40, "max_position_embeddings": 12, "layer_norm_eps": 1e-5},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
HALF = CONFIG | {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
D, H, T = 24, 3, 6
K = D // H
ROOT_K = math.sqrt(K)
HIDDEN = [0, 3]  # positions that the padding mask hides in rows 2 and 3
NEVER = torch.finfo(torch.float32).min
TIMES_MASK = "the padding mask is multiplied with the scores, expected added to them"


def reference(key, query, value, mask, *, scale=ROOT_K, future="hidden", padding="added",
              over=-1, join="b h t k -> b t (h k)", never=NEVER, swapped=False):  # fmt: skip
    """Eq. 1 with every decision as an option; (b, h, t, k) three times -> (b, t, d)."""
    query, key = (key, query) if swapped else (query, key)
    scores = query @ key.mT / scale
    t = scores.shape[-1]
    diagonals = {"hidden": 1, "and itself": 0, "seen": t}
    hidden = torch.ones(t, t, dtype=torch.bool).triu(diagonals.get(future, 1))
    hidden = hidden.mT if future == "past hidden" else hidden
    if future == "zeroed":
        scores = scores.masked_fill(hidden, 0.0)
    elif future != "after":
        scores = scores.masked_fill(hidden, never)
    if padding == "times":
        scores = scores * mask
    else:
        scores = scores + {"added": mask, "ignored": 0.0, "subtracted": -mask}[padding]
    weights = scores if over is None else scores.softmax(dim=over)
    if future == "after":
        weights = weights.masked_fill(hidden, 0.0)
    attended = weights @ value
    return attended.reshape(*join) if isinstance(join, tuple) else rearrange(attended, join)


def faults(rows: int) -> list[Fault]:
    """What may be wrong in the attention of so many rows."""
    strict = "the mask hides the last position too: a position must see itself"
    lost = "the causal mask is set after the softmax: the weights no longer sum to 1"
    flat = (
        "the heads are joined without moving them next to their own numbers: b h t k -> b t (h k)"
    )
    return [
        Fault("scale", "scores are divided by d, expected √(d/h)", {"scale": D}),
        Fault("scale", "scores are divided by √d, expected √(d/h)", {"scale": math.sqrt(D)}),
        Fault("scale", "scores are divided by d/h, expected its root √(d/h)", {"scale": K}),
        Fault("scale", "scores are divided by √h, expected √(d/h)", {"scale": math.sqrt(H)}),
        Fault("scale", "scores are not divided, expected by √(d/h)", {"scale": 1}),
        Fault("scale", "scores are multiplied by √(d/h), expected divided", {"scale": K**-0.5}),
        Fault("causal", "rows of the attention matrix attend to the future", {"future": "seen"}),
        Fault("causal", strict, {"future": "and itself"}),
        Fault("causal", strict, {"future": "and itself", "never": -math.inf}),
        Fault("causal", "the mask hides the past, expected the future", {"future": "past hidden"}),
        Fault("causal", "hidden scores are 0, expected a large negative one", {"future": "zeroed"}),
        Fault("causal", lost, {"future": "after"}),
        Fault("padding", "the padding mask is not added: padding is seen", {"padding": "ignored"}),
        Fault("padding", "the padding mask is subtracted, not added", {"padding": "subtracted"}),
        Fault("padding", TIMES_MASK, {"padding": "times"}),
        Fault("softmax", "the softmax is over the queries, expected over the keys", {"over": -2}),
        Fault("softmax", "the softmax is over the heads, expected over the keys", {"over": 1}),
        Fault("softmax", "there is no softmax over the keys", {"over": None}),
        Fault("heads", flat, {"join": (rows, T, D)}),
        Fault(
            "heads",
            "the numbers of all heads alternate, expected one head after the other",
            {"join": "b h t k -> b t (k h)"},
        ),
        Fault("operands", "query and key are swapped: scores are query @ keyᵀ", {"swapped": True}),
    ]


ROWS = 5


def heads(draw) -> dict[str, torch.Tensor]:
    """Rows in pairs that differ in what one property is about.

    Row 1 is row 0 with another last position, row 4 with another first one; row 3 is row 2 with
    others where the padding mask hides them.
    """
    parts = {name: draw.normal(ROWS, H, T, K) for name in ("key", "query", "value")}
    for name, part in parts.items():
        changed = part.clone()
        part[1], part[3], part[4] = part[0], part[2], part[0]
        if name != "query":
            part[1, :, -1], part[4, :, 0] = changed[1, :, -1], changed[4, :, 0]
            part[3, :, HIDDEN] = changed[3, :, HIDDEN]
    mask = torch.zeros(ROWS, 1, 1, T)
    mask[2:4, ..., HIDDEN] = -10_000.0
    return parts | {"mask": mask}


def measure_attention(ask, draw) -> dict[str, str]:
    parts, shape = heads(draw), (ROWS, T, D)
    found = ask("attention.attention", parts, config=CONFIG, training=False)["attended"]
    keep = torch.ones(ROWS, T, dtype=torch.bool)
    keep[2:4, HIDDEN] = False  # what a padding position gets means nothing

    def shown(tensor):
        return tensor.masked_fill(~keep[..., None], 0.0) if tensor.shape == shape else tensor

    known = faults(ROWS)
    explained = explain(shown(found), lambda **wrong: shown(reference(**parts, **wrong)), known)
    problems = explained.problems(ATTENTION)
    if found.shape != shape or not found.isfinite().all():
        return problems
    return with_places(problems, found, keep, explained.faults is None)


def with_places(problems: dict, found, keep, unexplained: bool) -> dict[str, str]:
    """The problems, with the places that see what they must not.

    Of a tensor that nothing explains, the two masks are judged by these alone, if its last position
    sees the first one, as any attention does.
    """
    shows = {
        "causal": ("rows of the attention matrix attend to the future", T - 1, (0, 1)),
        "padding": ("the attention sees padding", HIDDEN[0], (2, 3)),
    }
    attends = differ(found[0, -1], found[4, -1])
    for line, (words, seen, (row, other)) in shows.items():
        places = [i for i in range(T) if keep[row, i] and i != seen]
        sees = [i for i in places if differ(found[row, i], found[other, i])]
        place = f": position {sees[0]} sees position {seen}" if sees else ""
        if unexplained and attends and not place:
            del problems[line]
        elif unexplained and place:
            problems[line] = words + place
        elif line in problems:
            problems[line] += place
    return problems


def split(hidden, weight, bias, *, to="b t (h k) -> b h t k", linear=True) -> torch.Tensor:
    """Project and split into heads; `to` may also be the shape of a bare reshape."""
    x = F.linear(hidden, weight, bias) if linear else hidden
    return x.reshape(*to) if isinstance(to, tuple) else rearrange(x, to, h=H)


def weights(draw, names=("query", "key", "value")) -> dict[str, torch.Tensor]:
    """Random parameters of linears d -> d, by the names under which they are sent."""
    drawn = {f"state.{name}.weight": draw.normal(D, D, std=D**-0.5) for name in names}
    return drawn | {f"state.{name}.bias": draw.normal(D, std=0.3) for name in names}


def measure_transform(ask, draw) -> dict[str, str]:
    hidden, state = draw.normal(2, T, D), weights(draw)
    found = ask("attention.transform", {"hidden": hidden} | state, config=CONFIG)["heads"]
    given = hidden, state["state.query.weight"], state["state.query.bias"]
    flat = "the heads are cut out of the wrong axis: split d first, then move the heads before t"
    mixed = (
        "the numbers of all heads alternate, expected one head after the other: (h k), not (k h)"
    )
    known = [
        Fault("transform", flat, {"to": (2, H, T, K)}),
        Fault("transform", mixed, {"to": "b t (k h) -> b h t k"}),
        Fault("transform", "found (b, t, h, k), expected (b, h, t, k)", {"to": (2, T, H, K)}),
        Fault("transform", "the heads are transposed", {"to": "b t (h k) -> b h k t"}),
        Fault("transform", "the linear layer that is given is not applied", {"linear": False}),
    ]
    return explain(found, lambda **wrong: split(*given, **wrong), known).problems(["transform"])


def measure_forward(ask, draw) -> dict[str, str]:
    hidden, state = draw.normal(2, T, D), weights(draw)
    mask = torch.zeros(2, 1, 1, T)
    mask[1, ..., -2:] = -10_000.0
    given = {"hidden": hidden, "mask": mask} | state
    found = ask("attention.forward", given, config=CONFIG)["attended"]

    def forward(order=("key", "query", "value")):
        parts = (
            split(hidden, *(state[f"state.{n}.{p}"] for p in ("weight", "bias"))) for n in order
        )
        return reference(*parts, mask)

    orders = {
        ("query", "key", "value"): "forward swaps query and key",
        ("key", "query", "key"): "forward takes the key's projection for the value, too",
        ("value", "query", "key"): "forward swaps key and value",
        ("key", "key", "value"): "forward takes the key's projection for the query, too",
        ("query", "query", "query"): "forward projects all three by the query's layer",
    }
    known = [Fault("forward", says, {"order": order}) for order, says in orders.items()]
    problems = explain(found, forward, known).problems(["forward"])
    if "no mistake" in problems.get("forward", ""):
        problems["forward"] += " but those told above, if any"
    return problems


def measure_dropout(ask, draw) -> dict[str, str]:
    """One position sees itself alone: one head's output is 0 or twice its value at p = 0.5."""
    rows = 200
    parts = {name: draw.normal(rows, 1, 1, D) for name in ("key", "query", "value")}
    parts["mask"] = torch.zeros(rows, 1, 1, 1)
    options = {"config": HALF | {"num_attention_heads": 1}, "training": True}
    found = ask("attention.attention", parts, **options)["attended"]
    evaluated = [
        ask("attention.attention", parts, **options | {"training": False})["attended"]
        for _ in range(2)
    ]
    plain = parts["value"][:, 0]
    if found.shape != plain.shape:
        return {"dropout": f"found shape {tuple(found.shape)}, expected {tuple(plain.shape)}"}
    if differ(*evaluated):
        return {"dropout": "attention weights are dropped in evaluation, expected in training only"}
    return problem_of((found / plain)[:, 0], "attention weights")


ATTENTION = {
    "scale": "scores are divided by √(d/h)",
    "causal": "no position sees a later one, and each sees itself",
    "padding": "the padding mask is added to the scores",
    "softmax": "the weights are a softmax over the keys",
    "operands": "scores are query @ keyᵀ",
    "heads": "the heads are joined in order",
}
CHECKS = [
    Check(
        "attention",
        {"transform": "`transform` projects and splits into heads (b, h, t, k)"},
        measure_transform,
    ),
    Check("attention", ATTENTION, measure_attention),
    Check("attention", {"forward": "`forward` puts the parts together"}, measure_forward),
    Check("attention", {"dropout": "weights are dropped in training only"}, measure_dropout),
]
