"""Optimizers for matrices share what they cover, AdamW for all else, and how state is kept."""

import copy

import pytest
import torch
from matrix_runs import model_with_head
from technique_cases import those_whose
from torch import nn

from engine.checkpoint import load_tree, save_tree
from engine.errors import InputError
from engine.extension import apply_extensions, load_extensions
from engine.fast.adamw import FusedAdamW
from extensions.lora import LoRA
from extensions.matrix_optimizer import MatrixOptimizer


def brings_one(extension) -> bool:
    return isinstance(extension.make_optimizer(model_with_head(), 0.1, 0.0), MatrixOptimizer)


NAMES = those_whose(brings_one)


@pytest.fixture
def model():
    return model_with_head().train()


class Run:
    """A technique by name, with its optimizer, on a model of its own."""

    def __init__(self, name: str, model, lr: float = 0.01, weight_decay: float = 0.1):
        [self.extension] = load_extensions([name])
        self.model = model
        self.optimizer = self.extension.make_optimizer(model, lr, weight_decay)

    @property
    def covered(self) -> list[str]:
        return self.optimizer.coverage[self.optimizer.rule]

    def step(self, seed: int) -> None:
        step(self.model, self.optimizer, seed, self.extension.before_backward)


def step(model, optimizer, seed: int, before_backward=lambda model, batch: None) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    tokens, targets = torch.randint(30, (2, 5)), torch.randn(2, 2)
    loss = (model.head(model.gpt(tokens)["last_token"]) - targets).square().sum()
    before_backward(model, {"labels": torch.zeros(2, dtype=torch.long)})
    loss.backward()
    optimizer.step()


def test_several_techniques_bring_such_an_optimizer():
    assert len(NAMES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_all_linears_of_the_layers_are_covered_and_every_parameter_is_listed_once(name, model):
    run = Run(name, model)
    others = run.optimizer.coverage["adamw"]
    assert sorted(run.covered + others) == sorted(name for name, _ in model.named_parameters())
    linears = [
        f"{name}.weight"
        for name, module in model.gpt.gpt_layers.named_modules(prefix="gpt.gpt_layers")
        if isinstance(module, nn.Linear)
    ]
    assert len(linears) == 2 * 6 and set(linears) <= set(run.covered)
    assert not any("norm" in name or "embedding" in name for name in run.covered)
    assert all(repr(name) in repr(run.optimizer) for name in run.covered + others)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_not_cover_moves_as_with_adamw(name, model):
    twin = copy.deepcopy(model)
    run = Run(name, model)
    run.step(seed=1)
    step(twin, FusedAdamW(twin.parameters(), lr=0.01, weight_decay=0.1), seed=1)
    ours, theirs = model.state_dict(), twin.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in run.optimizer.coverage["adamw"])
    assert not any(torch.equal(ours[key], theirs[key]) for key in run.covered)


@pytest.mark.parametrize("name", NAMES)
def test_lora_s_matrices_are_covered_and_begin_with_their_first_gradient(name, model):
    """B is 0 at the start, so that A has no gradient in the first step."""
    apply_extensions(model, [LoRA(rank=2)])
    run = Run(name, model, weight_decay=0.0)
    place = "gpt.gpt_layers.0.self_attention.query"
    assert {f"{place}.A.weight", f"{place}.B.weight"} < set(run.covered)
    assert f"{place}.base.weight" not in run.covered
    weight = model.get_parameter(f"{place}.A.weight")
    start = weight.detach().clone()
    run.step(seed=1)
    assert torch.equal(weight, start)
    assert not any(torch.any(torch.as_tensor(x)) for x in run.optimizer.state[weight].values())
    for seed in (2, 3, 4):
        run.step(seed)
    assert not torch.equal(weight, start) and weight.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_its_state_and_options_come_back_from_a_file(name, model, tmp_path):
    run = Run(name, model)
    for seed in range(5):
        run.step(seed)
    tree = {"model": model.state_dict(), "optimizer": run.optimizer.state_dict()}
    save_tree(tmp_path / "f", tree)
    tree = load_tree(tmp_path / "f")
    again = Run(name, model_with_head().train(), lr=0.5, weight_decay=0.0)
    again.model.load_state_dict(tree["model"])
    again.optimizer.load_state_dict(tree["optimizer"])
    for seed in (7, 8, 9, 10):
        run.step(seed)
        again.step(seed)
    one, two = run.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_matrix_to_train_it_is_refused(name, model):
    model.gpt.requires_grad_(False)
    with pytest.raises(InputError, match=r"layers is trained.*: give --fine-tune-mode full-model"):
        Run(name, model)
