"""The three tasks' models, each on hidden states that the grader draws (`FixedGPT`)."""

import torch
from torch.nn import functional as F

from course.autograder.checks.attention import HALF
from course.autograder.checks.hypotheses import Check, Fault, differ, explain
from engine.prediction_files import ANSWER_TOKENS
from models.gpt2 import last_positions, states_at

B, T, D, V = 4, 7, 16, 8600  # V: the answers' tokens are below
SMALL = HALF | {"vocab_size": V, "hidden_size": D, "num_attention_heads": 4}
NO, YES = ANSWER_TOKENS.values()
WITH_SPACE, CAPITAL = (645, 3763), (2949, 5297)  # " no" and " yes", "No" and "Yes"
FIRST = "the first token is used, expected the last real one"
LAST = "the last position is used, which may be padding: the head sees padding"
READS = {
    "first": FIRST,
    "last": LAST,
    "counted": "the token at mask.sum() − 1 is used, which is right for right padding only",
    "mean": "the mean over all positions is used, expected the last real token",
    "real mean": "the mean over the real tokens is used, expected the last one alone",
    "all": "found logits of every position, expected those after the last real token",
}


def inputs(draw) -> dict[str, torch.Tensor]:
    """Whole rows, one padded on the right and one on the left."""
    mask = torch.ones(B, T, dtype=torch.long)
    mask[1, -3:], mask[2, :2] = 0, 0
    given = {"ids": draw.integers(V, B, T), "mask": mask, "hidden": draw.normal(B, T, D)}
    given["last_token"] = states_at(given["hidden"], last_positions(mask))
    return given | {"embedding": draw.normal(V, D, std=D**-0.5)}


def read(given, at: str = "last real") -> torch.Tensor:
    """What a head reads: (b, d), or (b, t, d) of "all"."""
    hidden, mask = given["hidden"], given["mask"]
    if at in ("all", "mean"):
        return hidden if at == "all" else hidden.mean(1)
    if at == "real mean":
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    places = {"first": torch.zeros(B, dtype=torch.long), "last": torch.full((B,), T - 1)}
    places |= {"counted": mask.sum(1) - 1, "last real": last_positions(mask)}
    return states_at(hidden, places[at])


def reading_faults(line: str) -> list[Fault]:
    probabilities = "found probabilities, expected logits: the loss has the softmax"
    faults = [Fault(line, says, {"at": at}) for at, says in READS.items()]
    return [*faults, Fault("raw", probabilities, {"after": "softmax"})]


def finished(logits: torch.Tensor, after: str | None) -> torch.Tensor:
    return logits.softmax(-1) if after else logits


def answers(ask, op: str, given, **settings) -> tuple[dict, dict]:
    """The answer to a request and to the same again, by the same seed of the head's weights."""
    return tuple(ask(op, given, config=SMALL, **settings) for _ in range(2))


def linear_of(found: dict, outputs: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The weight (outputs, d) and bias of a head that is one linear layer; None if it is not."""
    own = {name: value for name, value in found.items() if name.startswith("head.")}
    weights = [value for value in own.values() if value.shape == (outputs, D)]
    biases = [value for value in own.values() if value.shape == (outputs,)]
    if len(weights) != 1 or len(weights) + len(biases) != len(own):
        return None
    return weights[0], (biases or [torch.zeros(outputs)])[0]


def measure_sentiment(ask, draw) -> dict[str, str]:
    given, seed = inputs(draw), int(draw.integers(2**31 - 1, 1))
    settings = {"labels": 5, "mode": "full-model", "weights": seed}
    found, again = answers(ask, "sentiment.logits", given, **settings)
    logits = found["logits"]
    if logits.shape == again["logits"].shape and differ(logits, again["logits"]):
        return {"raw": "the same input gives other logits: dropout is on in evaluation"}
    linear = linear_of(found, 5)
    if linear is None:
        return by_changes(ask, draw, given, logits, settings)

    def expected(at="last real", after=None):
        return finished(F.linear(read(given, at), *linear), after)

    return explain(logits, expected, reading_faults("reads")).problems(("reads", "raw"))


def by_changes(ask, draw, given, logits, settings) -> dict[str, str]:
    """A head of another form: it must heed the last real token, and nothing else."""
    if logits.shape != (B, 5):
        words = f"found shape {tuple(logits.shape)}, expected {(B, 5)}"
        return {"reads": words, "raw": words}
    changed = draw.normal(B, T, D)
    rows = torch.arange(B)
    changed[rows, last_positions(given["mask"])] = given["last_token"]
    others = given | {"hidden": changed}
    last = inputs(draw) | {name: given[name] for name in ("ids", "mask", "embedding")}
    if differ(ask("sentiment.logits", others, config=SMALL, **settings)["logits"], logits):
        return {"reads": "other tokens than the last real one change the logits"}
    if not differ(ask("sentiment.logits", last, config=SMALL, **settings)["logits"], logits):
        return {"reads": "the last real token does not change the logits"}
    return {}


def measure_frozen(ask, draw) -> dict[str, str]:
    given, problems = inputs(draw), {}
    for mode, trained in (("last-linear-layer", False), ("full-model", True)):
        settings = {"config": SMALL, "labels": 5, "mode": mode, "weights": 0}
        found = ask("sentiment.frozen", given, **settings)
        if bool(found["gpt"].any()) != trained or bool(found["gpt"].all()) != trained:
            state = "trained, expected frozen" if not trained else "frozen, expected trained"
            problems["frozen"] = f"with --fine-tune-mode {mode} the GPT-2 is {state}"
        elif not found["head"].all() or not found["head"].numel():
            problems["frozen"] = f"with --fine-tune-mode {mode} the head is frozen or missing"
    return problems


def measure_paraphrase(ask, draw) -> dict[str, str]:
    """Logits of "no" and "yes" (b, 2), of all tokens (b, v), or of a linear layer of one's own."""
    given, seed = inputs(draw), int(draw.integers(2**31 - 1, 1))
    found, again = answers(ask, "paraphrase.logits", given, weights=seed)
    logits, linear = found["logits"], linear_of(found, 2)
    if logits.shape == again["logits"].shape and differ(logits, again["logits"]):
        return {"raw": "the same input gives other logits: dropout is on in evaluation"}

    def expected(at="last real", after=None, tokens=(NO, YES), own=False):
        state = read(given, at)
        if own:
            return finished(F.linear(state, *linear), after)
        if tokens is not None:
            return finished(state @ given["embedding"][list(tokens)].T, after)
        if logits.shape[-1:] != (V,):
            return torch.zeros(0)
        return finished(state @ given["embedding"].T, after)

    known = [
        *reading_faults("reads"),
        Fault("tokens", 'the logits are those of "yes" and "no": no is 0', {"tokens": (YES, NO)}),
        Fault("tokens", 'found the tokens " no" and " yes", with a space', {"tokens": WITH_SPACE}),
        Fault("tokens", 'found the tokens "No" and "Yes"', {"tokens": CAPITAL}),
    ]
    forms = [{}, {"tokens": None}] + ([{"own": True}] if linear else [])
    return explain(logits, expected, known, forms).problems(PARAPHRASE)


def measure_sonnet(ask, draw) -> dict[str, str]:
    given = inputs(draw)
    found = ask("sonnet.logits", given, config=SMALL, weights=0)["logits"]

    def expected(at="all", after=None, cut=slice(None)):
        state = read(given, at)
        state = state[:, cut] if state.ndim == 3 else state
        logits = state @ given["embedding"].T
        return logits if after is None else after(logits)

    one = "found logits of one position a text, expected those of every position (b, t, v)"
    cut = "found t − 1 positions: forward gives all, and the loss shifts (logits[:, :-1])"
    known = [
        Fault("positions", one, {"at": "last real"}),
        Fault("positions", one, {"at": "last"}),
        Fault("positions", cut, {"cut": slice(None, -1)}),
        Fault("positions", cut, {"cut": slice(1, None)}),
        Fault("raw", "found log-probabilities, expected logits", {"after": _log_softmax}),
        Fault("raw", "found probabilities, expected logits", {"after": _softmax}),
    ]
    return explain(found, expected, known).problems(("positions", "raw"))


def _softmax(logits):
    return logits.softmax(-1)


def _log_softmax(logits):
    return logits.log_softmax(-1)


RAW = "logits, as they are, and without dropout in evaluation"
PARAPHRASE = {
    "reads": "the head reads the last real token, under both paddings",
    "tokens": 'class 0 is the token "no", class 1 "yes"',
    "raw": RAW,
}
CHECKS = [
    Check(
        "sentiment",
        {"reads": "the head reads the last real token, under both paddings", "raw": RAW},
        measure_sentiment,
    ),
    Check("sentiment", {"frozen": "last-linear-layer freezes the GPT-2"}, measure_frozen),
    Check("paraphrase", PARAPHRASE, measure_paraphrase),
    Check(
        "sonnet",
        {"positions": "logits of each position's next token (b, t, v)", "raw": RAW},
        measure_sonnet,
    ),
]
