"""The optimizer of a run; matrices and embeddings decay in all of them, vectors in none."""

from engine.errors import InputError
from engine.extension import Extension, technique_of
from engine.forms import AdamW
from engine.options import FitOptions


def make_optimizer(model, options: FitOptions, extensions: list[Extension]):
    """The optimizer that an extension brings, else AdamW over all trainable parameters."""
    made = [(e, e.make_optimizer(model, options.lr, options.weight_decay)) for e in extensions]
    brought = [(technique_of(e), optimizer) for e, optimizer in made if optimizer is not None]
    if len(brought) > 1:
        names = " and ".join(name for name, _ in brought)
        raise InputError(f"--extension: {names} bring an optimizer each: choose one of them")
    trainable = [p for p in model.parameters() if p.requires_grad]
    [optimizer] = [optimizer for _, optimizer in brought] or [
        AdamW(trainable, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)
    ]
    spare_vectors(optimizer)
    return optimizer


def spare_vectors(optimizer) -> None:
    """Give biases and the gains of normalizations groups of their own, without weight decay.

    Decay is there for the weights that are multiplied with inputs; a gain belongs near 1, not 0.
    """
    for group in list(optimizer.param_groups):
        params = group["params"]
        names = group.get("param_names")
        vectors = [i for i, param in enumerate(params) if param.dim() < 2]
        if not group.get("weight_decay") or not vectors:
            continue
        spared = [(names[i], params[i]) if names else params[i] for i in vectors]
        others = sorted(set(range(len(params))) - set(vectors))
        group["params"] = [params[i] for i in others]
        if names:
            group["param_names"] = [names[i] for i in others]
        shared = {key: group[key] for key in group if key not in ("params", "param_names")}
        optimizer.add_param_group({**shared, "params": spared, "weight_decay": 0.0})
