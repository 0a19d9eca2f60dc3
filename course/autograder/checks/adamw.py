"""AdamW step by step: Kingma & Ba 2014, end of section 2, then the decay of Loshchilov & Hutter."""

import math

import torch

from course.autograder.checks.hypotheses import Check, Fault, differ, explain

STEPS, SHAPE = 4, (3, 4)
OPTIONS = {"lr": 0.05, "betas": [0.8, 0.95], "eps": 0.02, "weight_decay": 0.0, "correct_bias": True}


def reference(param, grads, group, *, correct="both", eps_in="√v", decay="after", power=2,
              share=True, count="steps", order="given", sign=1, **other):  # fmt: skip
    """The parameter after each step (t, …), with every decision as an option; grads may be None."""
    group = group | other
    (beta1, beta2), lr, weight_decay = group["betas"], group["lr"], group["weight_decay"]
    beta1, beta2 = (beta2, beta1) if order == "swapped" else (beta1, beta2)
    m = v = torch.zeros_like(param)
    states, taken = [], 0
    for grad in grads:
        if grad is None:
            states.append(param)
            continue
        taken += 1
        t = {"steps": taken, "from 0": taken - 1, "first": 1}[count]
        grad = grad + weight_decay * param if decay == "l2" else grad
        m = beta1 * m + ((1 - beta1) if share else 1) * grad
        v = beta2 * v + (1 - beta2) * grad**power
        m, v = (grad * (1 - beta1), grad**2 * (1 - beta2)) if count == "first" else (m, v)
        both = correct if group["correct_bias"] else "none"
        first = 1 - beta1**t if both in ("both", "m") else 1.0
        second = math.sqrt(1 - beta2**t) if both in ("both", "v") else 1.0
        first, second = (first or math.nan), (second or math.nan)
        root = (v + group["eps"]).sqrt() if eps_in == "v" else v.sqrt()
        if eps_in == "√v̂":
            step = (m / first) / (root / second + group["eps"])
        else:
            step = m * second / first / (root + (group["eps"] if eps_in == "√v" else 0.0))
        if decay in ("before", "no lr before"):
            param = param - (lr if decay == "before" else 1) * weight_decay * param
        param = param - sign * lr * step
        if decay in ("after", "no lr"):
            param = param - (lr if decay == "after" else 1) * weight_decay * param
        states.append(param)
    return torch.stack(states)


PLAIN = [
    Fault("bias", "neither m nor v is bias-corrected", {"correct": "none"}),
    Fault("bias", "√v is not bias-corrected", {"correct": "m"}),
    Fault("bias", "m is not bias-corrected", {"correct": "v"}),
    Fault("bias", "steps are counted from 0 in the bias correction", {"count": "from 0"}),
    Fault(
        "epsilon",
        "ε is added to the corrected √v̂, expected to √v: efficient form",
        {"eps_in": "√v̂"},
    ),
    Fault("epsilon", "ε is added below the root, expected √v + ε", {"eps_in": "v"}),
    Fault("epsilon", "ε is not added", {"eps_in": "no"}),
    Fault("moments", "v averages the gradient, expected its square", {"power": 1}),
    Fault("moments", "m adds the whole gradient, expected (1 − β₁) of it", {"share": False}),
    Fault("moments", "the state is not kept: every step is a first one", {"count": "first"}),
    Fault("moments", "β₁ and β₂ are swapped", {"order": "swapped"}),
    Fault("moments", "the update is added, expected subtracted", {"sign": -1}),
]
DECAY = [
    Fault(
        "decay", "weight decay is applied before the update, expected after it", {"decay": "before"}
    ),
    Fault(
        "decay", "weight decay is added to the gradient (L2), expected decoupled", {"decay": "l2"}
    ),
    Fault("decay", "weight decay is not multiplied by the learning rate", {"decay": "no lr"}),
    Fault(
        "decay",
        "weight decay is not multiplied by the learning rate, and comes before the update",
        {"decay": "no lr before"},
    ),
    Fault("decay", "there is no weight decay", {"decay": "none"}),
]


def run(ask, draw, groups: list[dict], missing=()) -> tuple[list[torch.Tensor], list, list]:
    """Train parameters, one a group; returns what was found after each step, and what was given.

    missing: (step, group) without a gradient.
    """
    params = [draw.normal(*SHAPE) for _ in groups]
    grads = [
        [None if (t, i) in missing else draw.normal(*SHAPE, std=0.5) for t in range(STEPS)]
        for i in range(len(groups))
    ]
    sent = {f"param.{i}": param for i, param in enumerate(params)}
    for i, row in enumerate(grads):
        sent |= {f"grad.{t}.{i}": grad for t, grad in enumerate(row) if grad is not None}
    asked = [
        {"trained": group.get("trained", True), "options": group["options"]} for group in groups
    ]
    found = ask("adamw.steps", sent, groups=asked, options=OPTIONS, steps=STEPS)
    rows = [torch.stack([found[f"{t}.{i}"] for t in range(STEPS)]) for i in range(len(groups))]
    return rows, params, grads


def one(ask, draw, faults, right, **options):
    """Explain one parameter's steps, `right` being options that were diagnosed before."""
    [found], [param], [grads] = run(ask, draw, [{"options": options}])
    group = OPTIONS | options
    left = [fault for fault in faults if not fault.options.keys() & right.keys()]
    return explain(found, lambda **wrong: reference(param, grads, group, **(right | wrong)), left)


def measure_adamw(ask, draw) -> dict[str, str]:
    """What is found out first is taken as known afterwards, so that it costs one line alone."""
    plain = one(ask, draw, PLAIN, {})
    problems = plain.problems(("moments", "bias", "epsilon"))
    known = {k: v for fault in plain.faults or () for k, v in fault.options.items()}
    decayed = one(ask, draw, DECAY, known, weight_decay=0.3)
    problems |= decayed.problems(["decay"])
    known |= {k: v for fault in decayed.faults or () for k, v in fault.options.items()}
    ignored = [Fault("bias_off", "correct_bias=False is ignored", {"correct_bias": True})]
    off = one(ask, draw, ignored, known, correct_bias=False)
    problems |= off.problems(["bias_off"])
    return problems | measure_groups(ask, draw, known)


def measure_groups(ask, draw, known: dict) -> dict[str, str]:
    groups = [
        {"options": {"lr": 0.05, "weight_decay": 0.2}},
        {"options": {"lr": 0.2, "weight_decay": 0.0, "betas": [0.5, 0.9]}},
        {"options": {"weight_decay": 0.4}, "trained": False},
        {"options": {"weight_decay": 0.4}},
    ]
    missing = {(t, 2) for t in range(STEPS)} | {(t, 3) for t in (0, 2)}
    found, params, grads = run(ask, draw, groups, missing)
    first, defaults = groups[0]["options"], {"betas": OPTIONS["betas"]}
    faults = [
        Fault("groups", "all groups use the options of the first one", first | defaults),
        Fault(
            "groups",
            "all groups use the optimizer's defaults",
            {name: OPTIONS[name] for name in ("lr", "weight_decay", "betas")},
        ),
    ]

    def expected(i):
        group = OPTIONS | groups[i]["options"]
        return lambda **wrong: reference(params[i], grads[i], group, **(known | wrong))

    explained = explain(found[1], expected(1), faults)
    problems = explained.problems(["groups"])
    known = known | {k: v for fault in explained.faults or () for k, v in fault.options.items()}
    if differ(found[2], params[2].expand(STEPS, *SHAPE)):
        return problems | {"skipped": "a frozen parameter was changed, expected it as it came"}
    if differ(found[3][0], params[3]) or differ(found[3][2], found[3][1]):
        return problems | {"skipped": "a parameter whose gradient is None was changed"}
    return problems | explain(found[3], expected(3), []).problems(["skipped"])


LINES = {
    "moments": "m and v are moving averages, kept from step to step",
    "bias": "both moments are bias-corrected in the step size",
    "epsilon": "ε is added to √v before the correction (efficient form)",
    "decay": "decoupled decay, after the update, times the learning rate",
    "bias_off": "correct_bias=False switches the correction off",
    "groups": "each parameter group has options of its own",
    "skipped": "frozen parameters, and those without a gradient, are left alone",
}
CHECKS = [Check("adamw", LINES, measure_adamw)]
