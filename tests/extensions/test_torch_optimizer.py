"""torch_optimizer against torch's own steps; what it refuses, in one line."""

import pytest
import torch
from matrix_runs import model_with_head, step
from technique_cases import Tried

from engine.errors import InputError
from engine.extension import load_extensions
from engine.optimizers import make_optimizer
from engine.options import FitOptions
from engine.trees import load_tree, save_tree
from extensions.torch_optimizer import optimizers

TRIED = {
    "torch_optimizer": Tried(
        "name=Adam",
        varied=[
            "name=SGD,momentum=0.9,nesterov=true",
            "name=Adafactor",
            "name=NAdam,betas=0.8+0.9",
        ],
    )
}
EXAMPLES = {
    "SGD": ("momentum=0.9,nesterov=true", {"momentum": 0.9, "nesterov": True}),
    "Adafactor": ("eps=none+1e-3,d=2", {"eps": (None, 1e-3), "d": 2}),
    "AdamW": ("betas=0.8+0.95,amsgrad=true,foreach=false", {"betas": (0.8, 0.95), "amsgrad": True}),
    "ASGD": ("t0=3", {"t0": 3}),
    "RMSprop": ("momentum=0.5", {"momentum": 0.5}),
    "Rprop": ("etas=0.4+1.3", {"etas": (0.4, 1.3)}),
}
NAMES = [name for name in optimizers() if name != "Muon"]


def technique(flag: str):
    [extension] = load_extensions([f"torch_optimizer:{flag}"])
    return extension


def fit_options(name: str) -> FitOptions:
    decay = 0.0 if name == "Rprop" else 0.1
    return FitOptions(epochs=1, metric="acc", lr=0.01, weight_decay=decay)


@pytest.mark.parametrize("name", NAMES)
def test_each_steps_as_torch_s_with_decay_for_matrices_alone(name):
    text, options = EXAMPLES.get(name, ("", {}))
    ours, theirs, run = model_with_head(), model_with_head(), fit_options(name)
    decay = run.weight_decay
    mine = make_optimizer(ours, run, [technique(f"name={name},{text}")])
    by_dim = [[p for p in theirs.parameters() if (p.dim() > 1) == two] for two in (True, False)]
    matrices = {"params": by_dim[0]} | ({"weight_decay": decay} if decay else {})
    other = getattr(torch.optim, name)([matrices, {"params": by_dim[1]}], lr=0.01, **options)
    if decay:
        other.param_groups[1]["weight_decay"] = 0.0
    before = [p.detach().clone() for p in ours.parameters()]
    for seed in range(4):
        step(ours, mine, seed)
        step(theirs, other, seed)
    assert type(mine) is getattr(torch.optim, name)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert any(
        (p - old).abs().max() > 1e-4 for p, old in zip(ours.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_its_state_comes_back_from_a_file_to_the_same_bits(name, tmp_path):
    text, _ = EXAMPLES.get(name, ("", {}))
    flag, run = f"name={name},{text}", fit_options(name)
    whole = model_with_head()
    optimizer = make_optimizer(whole, run, [technique(flag)])
    for seed in range(2):
        step(whole, optimizer, seed)
    save_tree(tmp_path / "state", {"optimizer": optimizer.state_dict()})
    again = model_with_head()
    again.load_state_dict(whole.state_dict())
    resumed = make_optimizer(again, run, [technique(flag)])
    resumed.load_state_dict(load_tree(tmp_path / "state")["optimizer"])
    for seed in (2, 3):
        step(whole, optimizer, seed)
        step(again, resumed, seed)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


@pytest.mark.parametrize(
    "flag, said",
    [
        ("name=Adaam", "name=Adaam: did you mean .*torch.optim has ASGD, Adadelta, Adafactor"),
        ("name=LBFGS", "evaluates the loss several times a step"),
        ("name=SparseAdam", "sparse gradients alone"),
        ("name=Optimizer", "torch.optim has"),
        ("name=SGD,beta=1", "SGD has no option beta: it has momentum=0, dampening=0, nesterov"),
        ("name=SGD,lr=1", "has no option lr: .*flags of the run"),
        ("name=SGD,nesterov=1", "nesterov=1: expected one like SGD's default, false"),
        ("name=SGD,momentum=x", "momentum=x: expected one like SGD's default, 0"),
        ("name=Adam,betas=0.9", "betas=0.9: expected one like Adam's default, 0.9.0.999"),
        ("momentum", "option 'momentum', expected some of: name=AdamW"),
    ],
)
def test_what_there_is_not_is_refused_and_what_there_is_listed(flag, said):
    with pytest.raises(InputError, match=said) as refusal:
        technique(flag)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "flag, decay, said",
    [
        ("name=Rprop", 0.1, "Rprop has no decay: give --weight_decay 0"),
        ("name=Muon", 0.1, "Muon: Muon only supports 2D"),
        ("name=SGD,nesterov=true", 0.1, "SGD: Nesterov momentum requires"),
        ("name=Adam,betas=1+2", 0.1, "Adam: Invalid beta"),
    ],
)
def test_what_torch_refuses_is_said_in_one_line(flag, decay, said):
    with pytest.raises(InputError, match=said) as refusal:
        technique(flag).make_optimizer(model_with_head(), 0.1, decay)
    assert "\n" not in str(refusal.value)
