"""The layer: two residual sums, each with a norm before its part (Radford et al. 2019, 2.3)."""

import torch
from torch.nn import functional as F

from course.autograder.checks.attention import CONFIG, HALF
from course.autograder.checks.dropout import problem_of
from course.autograder.checks.hypotheses import Check, Fault, differ, explain

B, T, D, INNER = 3, 6, CONFIG["hidden_size"], CONFIG["intermediate_size"]
NORMS = ("attention_layer_norm", "out_layer_norm")
DENSE = {"attention_dense": (D, D), "interm_dense": (INNER, D), "out_dense": (D, INNER)}
ACTIVATIONS = {
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    **{"gelu": F.gelu, "relu": F.relu, "none": lambda x: x},
    **{"tanh alone": torch.tanh, "sigmoid": lambda x: x * (1.702 * x).sigmoid(), "silu": F.silu},
}
EITHER_GELU = (
    {},
    {"activation": "gelu"},
)  # the course's starter has one, OpenAI's weights the other


def reference(given, *, first="x", second="x", norms=NORMS, place="before", activation="tanh",
              projected=True, masked=True, eps=1e-5):  # fmt: skip
    """A layer on `FixedAttention`, with every decision as an option.

    first, second: what is added to each part, "x", its "norm", "nothing" or the layer's "input".
    """

    def norm(x, name):
        if name is None:
            return x
        weight, bias = given[f"state.{name}.weight"], given[f"state.{name}.bias"]
        return F.layer_norm(x, (D,), weight, bias, eps)

    def dense(x, name):
        return F.linear(x, given[f"state.{name}.weight"], given[f"state.{name}.bias"])

    def part(x, name, function, add):
        normed = x if place == "after" else norm(x, name)
        added = {"x": x, "norm": normed, "nothing": 0.0, "input": given["hidden"]}[add]
        summed = added + function(normed)
        return norm(summed, name) if place == "after" else summed

    def attended(x):
        shown = (given["mask"][:, 0, 0] > -1).float()[..., None] if masked else 1.0
        x = x @ given["attention"] * shown
        return dense(x, "attention_dense") if projected else x

    def perceptron(x):
        return dense(ACTIVATIONS[activation](dense(x, "interm_dense")), "out_dense")

    hidden = part(given["hidden"], norms[0], attended, first)
    return part(hidden, norms[1], perceptron, second)


FAULTS = [
    Fault("residuals", "attention's residual is missing: x is not added", {"first": "nothing"}),
    Fault("residuals", "the MLP's residual is missing: x is not added", {"second": "nothing"}),
    Fault("residuals", "attention's residual adds the normed x, expected x", {"first": "norm"}),
    Fault("residuals", "the MLP's residual adds the normed x, expected x", {"second": "norm"}),
    Fault(
        "residuals",
        "the MLP's residual adds the layer's input, expected attention's sum",
        {"second": "input"},
    ),
    Fault("norms", "the norms come after the sums, expected before each part", {"place": "after"}),
    Fault("norms", "attention's norm is missing", {"norms": (None, NORMS[1])}),
    Fault("norms", "the MLP's norm is missing", {"norms": (NORMS[0], None)}),
    Fault("norms", "both norms are missing", {"norms": (None, None)}),
    Fault("norms", "the two norms are swapped", {"norms": NORMS[::-1]}),
    Fault("norms", "attention_layer_norm is used twice", {"norms": (NORMS[0],) * 2}),
    Fault("norms", "out_layer_norm is used twice", {"norms": (NORMS[1],) * 2}),
    Fault("norms", "config.layer_norm_eps is not used", {"eps": 1e-12}),
    Fault("activation", "there is no activation between the two layers", {"activation": "none"}),
    Fault("activation", "the activation is ReLU, expected GELU", {"activation": "relu"}),
    Fault("activation", "the activation is tanh, expected GELU", {"activation": "tanh alone"}),
    Fault("activation", "the activation is SiLU, expected GELU", {"activation": "silu"}),
    Fault(
        "activation",
        "the GELU is x σ(1.702 x), expected the tanh approximation",
        {"activation": "sigmoid"},
    ),
    Fault("parts", "attention_dense is not applied to attention's output", {"projected": False}),
    Fault("parts", "the attention mask is not given to self_attention", {"masked": False}),
]


def inputs(draw) -> dict[str, torch.Tensor]:
    given = {"hidden": draw.normal(B, T, D), "attention": draw.normal(D, D, std=D**-0.5)}
    for name, shape in DENSE.items():
        given[f"state.{name}.weight"] = draw.normal(*shape, std=shape[1] ** -0.5)
        given[f"state.{name}.bias"] = draw.normal(shape[0], std=0.3)
    for name in NORMS:
        given[f"state.{name}.weight"] = 1 + draw.normal(D, std=0.3)
        given[f"state.{name}.bias"] = draw.normal(D, std=0.3)
    given["mask"] = torch.zeros(B, 1, 1, T)
    given["mask"][1, ..., -2:] = -10_000.0
    return given


def measure_layer(ask, draw) -> dict[str, str]:
    given = inputs(draw)
    config = CONFIG | {"layer_norm_eps": 0.1}  # large enough to see whether it is used
    found = ask("layer.forward", given, config=config)["hidden"]

    def expected(**wrong):
        return reference(given, **({"eps": 0.1} | wrong))

    return explain(found, expected, FAULTS, EITHER_GELU).problems(LAYER)


def measure_add(ask, draw) -> dict[str, str]:
    rows = 40
    given = {name: draw.normal(rows, 2, D) for name in ("input", "output")}
    given |= {name: value for name, value in inputs(draw).items() if "attention_dense" in name}
    dense = F.linear(
        given["output"], *(given[f"state.attention_dense.{p}"] for p in ("weight", "bias"))
    )
    evaluated = ask("layer.add", given, config=HALF, training=False)["sum"]
    again = ask("layer.add", given, config=HALF, training=False)["sum"]
    if evaluated.shape == dense.shape and differ(evaluated, again):
        return {"dropout": "numbers are dropped in evaluation, expected in training only"}
    known = [
        Fault("add", "add leaves the input out, expected input + dropout(dense(output))", {"i": 0}),
        Fault("add", "add does not apply dense_layer to the output", {"plain": True}),
    ]

    def expected(i=1, plain=False):
        return i * given["input"] + (given["output"] if plain else dense)

    problems = explain(evaluated, expected, known).problems(["add", "dropout"])
    if problems:
        return {"dropout": "not measured, since add is wrong in evaluation"} | problems
    trained = ask("layer.add", given, config=HALF, training=True)["sum"]
    if trained.shape != dense.shape:
        return {"dropout": f"found shape {tuple(trained.shape)} in training"}
    whole = trained / (given["input"] + dense)
    if ((whole.abs() < 1e-3) | ((whole - 2).abs() < 1e-3)).all():
        return {"dropout": "the sum is dropped, expected the dense layer's output alone"}
    ratios = ((trained - given["input"]) / dense).reshape(-1, 1)
    sane = dense.abs().reshape(-1) > 0.05
    return problem_of(ratios[sane], "numbers of the dense layer's output")


LAYER = {
    "residuals": "each part is added to its own input",
    "norms": "a layer norm comes before each part",
    "activation": "GELU is between the MLP's two layers",
    "parts": "attention gets the mask, and its output goes through attention_dense",
}
CHECKS = [
    Check("layer", LAYER, measure_layer),
    Check(
        "layer",
        {
            "add": "`add` is input + dropout(dense_layer(output))",
            "dropout": "the dense layer's output is dropped, in training only",
        },
        measure_add,
    ),
]
