"""K-FAC against least squares, gradient descent, its formula in NumPy, and one-by-one gradients."""

import copy
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from classifier import TASKS, GPT2SentimentClassifier
from engine.errors import InputError
from engine.extension import apply_extensions
from extensions.gradient_checkpointing import GradientCheckpointing
from extensions.kfac import Kfac, KfacExtension, damped_inverse
from extensions.rdrop import RDrop
from extensions.smart import Smart

TRIED = {"kfac": Tried(varied=["damping=0.1,decay=0.5,collect=2,every=3,momentum=0,graft=false"])}

PLAIN = {"graft": False, "momentum": 0.0, "every": 1, "collect": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("kfac") / "model")


@pytest.fixture
def model(folder):
    torch.manual_seed(0)
    settings = SimpleNamespace(
        model_size=str(folder), num_labels=3, hidden_dropout_prob=0.0, fine_tune_mode="full-model"
    )
    return GPT2SentimentClassifier(settings).train()


def batch_of(rows: int, seed: int = 0) -> dict:
    """Rows of 6 tokens, every other one with 2 of padding after them."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, 6, dtype=torch.long)
    mask[::2, 4:] = 0
    tokens = torch.randint(40, (rows, 6), generator=random) * mask
    labels = torch.randint(3, (rows,), generator=random)
    sent_ids = [str(i) for i in range(rows)]
    return {"token_ids": tokens, "attention_mask": mask, "labels": labels, "sent_ids": sent_ids}


def backward(model, extension, batches: list[dict], *, scale=1.0, others=()) -> None:
    """As in the fit: the mean over all targets, in so many pieces."""
    extension.optimizer.zero_grad()
    total = sum(len(batch["labels"]) for batch in batches)
    for batch in batches:
        logits = model(batch["token_ids"], batch["attention_mask"])
        objective = TASKS["sst"].loss_fn(logits, batch) / total
        for other in (extension, *others):
            share = len(batch["labels"]) / total
            objective = objective + share * other.penalty(model, batch, logits)
            other.before_backward(model, batch)
        (scale * objective).backward()


def step(model, extension, seed: int) -> None:
    backward(model, extension, [batch_of(4, seed)])
    extension.optimizer.step()


def prepared(model, **options) -> KfacExtension:
    extension = KfacExtension(**options)
    extension.make_optimizer(model, 0.01, 0.1)
    return extension


def factors(extension) -> dict[str, torch.Tensor]:
    """A and G of every covered linear after one look, and how many rows there were."""
    extension.optimizer.step()
    found = {}
    for weight, collector in extension.optimizer.collectors.items():
        state = extension.optimizer.state[weight]
        found |= {f"{collector.name}.{side}": state[side].clone() for side in ("input", "output")}
    return found


def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys() and one
    for name in one:
        torch.testing.assert_close(two[name], one[name], msg=name)


# -- one linear layer --------------------------------------------------------------------------


def one_linear(*, bias: bool, lr=1.0, weight_decay=0.0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=bias)).double().train()
    linears = {"0": model[0]}
    optimizer = Kfac(model, linears, KfacExtension(**options), lr=lr, weight_decay=weight_decay)
    return model, optimizer


def squared_step(model, optimizer, x, y) -> None:
    """½ |f(x) − y|², a mean over rows."""
    optimizer.zero_grad()
    optimizer.note(len(x))
    (0.5 * (model(x) - y).square().sum() / len(x)).backward()
    optimizer.step()


@pytest.mark.parametrize("bias", [True, False])
def test_where_g_is_the_identity_a_step_is_gauss_newton_s_and_solves_least_squares(bias):
    """Residuals that are white at the start make it so; then A alone is the Gauss-Newton matrix."""
    model, optimizer = one_linear(bias=bias, damping=1e-20, **PLAIN)
    x = torch.randn(20, 4, dtype=torch.float64)
    white = torch.linalg.qr(torch.randn(20, 3, dtype=torch.float64)).Q * math.sqrt(20)
    y = model(x).detach() - white
    squared_step(model, optimizer, x, y)
    output = optimizer.state[model[0].weight]["output"]
    torch.testing.assert_close(output, torch.eye(3, dtype=torch.float64))
    inputs = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1) if bias else x
    expected = torch.linalg.lstsq(inputs, y).solution.T
    torch.testing.assert_close(model[0].weight.detach(), expected[:, :4])
    if bias:
        torch.testing.assert_close(model[0].bias.detach(), expected[:, 4])


def test_with_infinite_damping_it_is_scaled_gradient_descent():
    """λ is the damping times the mean eigenvalues of A and G."""
    model, optimizer = one_linear(bias=True, damping=1e12, **PLAIN)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    squared_step(model, optimizer, x, y)
    state = optimizer.state[model[0].weight]
    damping = 1e12 * state["input"].trace() / 5 * state["output"].trace() / 3
    for start, p in zip(before, model.parameters(), strict=True):
        change = damping * (start - p.detach())
        torch.testing.assert_close(change, p.grad, rtol=1e-3, atol=1e-4)


def test_a_change_of_the_inputs_axes_changes_nothing():
    """Martens & Grosse 2015, section 10: outputs move alike; with gradient descent they do not."""
    torch.manual_seed(4)
    turn = torch.randn(4, 4, dtype=torch.float64) + 3 * torch.eye(4, dtype=torch.float64)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    for damping, same in ((1e-20, True), (1e12, False)):
        outputs = []
        for axes in (torch.eye(4, dtype=torch.float64), turn):
            model, optimizer = one_linear(bias=True, lr=0.1, damping=damping, **PLAIN)
            with torch.no_grad():
                model[0].weight.copy_(model[0].weight @ torch.linalg.inv(axes))
            start = model(x @ axes.T).detach()
            squared_step(model, optimizer, x @ axes.T, y)
            outputs.append(model(x @ axes.T).detach() - start)
        outputs = [out / out.norm() for out in outputs]
        assert torch.allclose(*outputs, atol=1e-6) == same


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [PLAIN, {}, {"every": 3, "collect": 2, "decay": 0.5, "momentum": 0.8}, {"collect": 1}],
    ids=str,
)
def test_the_trajectory_is_the_formula_s(bias, options):
    how = {"lr": 0.1, "weight_decay": 0.2}
    model, optimizer = one_linear(bias=bias, **how, **options)
    options = SimpleNamespace(**{**vars(KfacExtension()), **options})
    wide = model[0].weight.detach().numpy().copy()
    if bias:
        wide = np.concatenate([wide, model[0].bias.detach().numpy()[:, None]], axis=1)
    a_mean, g_mean, mean, square, looks = 0.0, 0.0, 0.0, 0.0, 0
    for t in range(1, 8):
        x, y = (torch.randn(6, n, dtype=torch.float64) for n in (4, 3))
        squared_step(model, optimizer, x, y)
        a = np.concatenate([x.numpy(), np.ones((6, 1))], axis=1) if bias else x.numpy()
        g = a @ wide.T - y.numpy()  # of each row by itself
        if (t - 1) % options.collect == 0:
            looks += 1
            stays = min(1 - 1 / looks, options.decay)
            a_mean = stays * a_mean + (1 - stays) * a.T @ a / 6
            g_mean = stays * g_mean + (1 - stays) * g.T @ g / 6
        if (t - 1) % options.every == 0:
            sizes = [np.trace(factor) / len(factor) for factor in (a_mean, g_mean)]
            pi = math.sqrt(sizes[0] / sizes[1])
            root = math.sqrt(options.damping * sizes[0] * sizes[1])  # of λ
            a_inverse = np.linalg.inv(a_mean + pi * root * np.eye(len(a_mean)))
            g_inverse = np.linalg.inv(g_mean + root / pi * np.eye(3))
        grad = g.T @ a / 6
        mean = options.momentum * mean + (1 - options.momentum) * grad
        square = 0.999 * square + 0.001 * grad**2
        direction = g_inverse @ (mean / (1 - options.momentum**t)) @ a_inverse
        if options.graft:
            adamw = math.sqrt(1 - 0.999**t) / (1 - options.momentum**t) * mean
            adamw = adamw / (np.sqrt(square) + 1e-6)
            direction *= np.linalg.norm(adamw) / np.linalg.norm(direction)
        wide = wide - 0.1 * direction
        wide[:, :4] *= 1 - 0.1 * 0.2  # a bias has no decay
        torch.testing.assert_close(model[0].weight.detach(), torch.from_numpy(wide[:, :4]))
        if bias:
            torch.testing.assert_close(model[0].bias.detach(), torch.from_numpy(wide[:, 4]))


def test_a_factor_of_nothing_is_inverted_to_a_multiple_of_the_identity():
    torch.testing.assert_close(damped_inverse(torch.zeros(3, 3), 0.01), 10 * torch.eye(3))


# -- what is collected -------------------------------------------------------------------------


def test_a_and_g_are_means_over_the_gradients_of_single_rows(model):
    """A's over real positions, G's over targets; padding takes no part."""
    batch, extension = batch_of(4), prepared(model)
    linear = model.gpt.gpt_layers[0].interm_dense
    seen = {}
    hook = linear.register_forward_hook(lambda _, inputs, out: seen.update(a=inputs[0], out=out))
    expected = {"input": 0.0, "output": 0.0}
    for row in range(4):
        one = {k: v[row : row + 1] for k, v in batch.items()}
        loss = TASKS["sst"].loss_fn(model(one["token_ids"], one["attention_mask"]), one)
        [g] = torch.autograd.grad(loss, seen["out"])
        real = one["attention_mask"].bool()
        a = torch.cat([seen["a"], torch.ones(1, 6, 1)], dim=2)[real].detach()
        expected["input"] = expected["input"] + a.T @ a / batch["attention_mask"].sum()
        expected["output"] = expected["output"] + g[real].T @ g[real] / 4
    hook.remove()
    backward(model, extension, [batch])
    found = factors(extension)
    for side in ("input", "output"):
        name = f"gpt.gpt_layers.0.interm_dense.{side}"
        torch.testing.assert_close(found[name], expected[side])


def split(batch: dict, sizes: list[int]) -> list[dict]:
    starts = np.cumsum([0, *sizes[:-1]])
    pairs = zip(starts, sizes, strict=True)
    return [{k: v[i : i + n] for k, v in batch.items()} for i, n in pairs]


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [5, 3], [1, 7]])
def test_a_batch_in_pieces_gives_the_factors_of_the_whole(model, sizes):
    batch, found = batch_of(8), []
    for pieces in ([batch], split(batch, sizes)):
        twin = copy.deepcopy(model)
        extension = prepared(twin)
        backward(twin, extension, pieces)
        found.append(factors(extension))
    assert_same(*found)


def test_two_workers_have_the_factors_of_one_with_the_whole_batch(model, monkeypatch):
    """The other worker's share is played back in the place of its messages."""
    batch = batch_of(8)
    shares, workers = split(batch, [5, 3]), []
    alone = copy.deepcopy(model)
    extension = prepared(alone)
    backward(alone, extension, [batch])
    expected = factors(extension)
    for share in shares:
        twin = copy.deepcopy(model)
        workers.append(prepared(twin))
        # the mean is over all 8; DistributedDataParallel averages, so each loss counts double
        backward(twin, workers[-1], [share], scale=2 * len(share["labels"]) / 8)
    messages = []
    for collector in workers[1].optimizer.collectors.values():
        messages += [*collector.sums, torch.tensor(3.0)]
    fake = SimpleNamespace(
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_reduce=lambda tensor: tensor.add_(messages.pop(0)),
    )
    monkeypatch.setattr("extensions.kfac.dist", fake)
    assert_same(expected, factors(workers[0]))
    assert messages == []


def test_nothing_is_collected_in_evaluation_without_gradients_or_between_looks(model):
    extension = prepared(model, collect=2)
    collectors = extension.optimizer.collectors.values()
    extension.optimizer.zero_grad()
    batch = batch_of(4)
    with torch.no_grad():
        model(batch["token_ids"], batch["attention_mask"])
    model.eval()
    model(batch["token_ids"], batch["attention_mask"]).sum().backward()
    assert all(collector.sums is None for collector in collectors)
    model.train()
    seen = []
    for seed in range(4):
        backward(model, extension, [batch_of(4, seed)])
        seen.append({collector.sums is not None for collector in collectors})
        extension.optimizer.step()
    assert seen == [{True}, {False}, {True}, {False}]


def test_smart_s_passes_are_not_collected_and_r_drop_s_second_is(model):
    rows = {}
    for name, others in {"none": [], "smart": [Smart()], "rdrop": [RDrop()]}.items():
        twin = copy.deepcopy(model)
        extension = prepared(twin)
        backward(twin, extension, [batch_of(4)], others=others)
        query = twin.gpt.gpt_layers[0].self_attention.query
        rows[name] = float(extension.optimizer.collectors[query.weight].sums[2])
        assert extension.optimizer.targets == 4
    assert rows == {"none": 20.0, "smart": 20.0, "rdrop": 40.0}


def test_gradient_checkpointing_changes_no_factor_and_no_input_is_kept_for_it(model):
    found, forgotten = [], []
    for extensions in ([], [GradientCheckpointing()]):
        twin, seen = copy.deepcopy(model), []
        apply_extensions(twin, extensions)
        extension, batch = prepared(twin), batch_of(4)
        twin.gpt.gpt_layers[0].out_dense.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(StorageWeakRef(inputs[0].untyped_storage()))
        )
        logits = twin(batch["token_ids"], batch["attention_mask"])
        forgotten.append(seen[0].expired())
        extension.optimizer.note(4, batch["attention_mask"])
        (TASKS["sst"].loss_fn(logits, batch) / 4).backward()
        found.append(factors(extension))
    assert_same(*found)
    assert forgotten == [False, True]


def test_under_autocast_the_factors_are_kept_in_float32(model):
    found = []
    for enabled in (False, True):
        twin = copy.deepcopy(model)
        extension = prepared(twin)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            backward(twin, extension, [batch_of(4)])
        found.append(factors(extension))
    for name, exact in found[0].items():
        rounded = found[1][name]
        assert rounded.dtype == torch.float32
        error = (rounded - exact).norm() / exact.norm()
        assert error < 0.05, name
        torch.testing.assert_close(rounded, rounded.T, atol=1e-6, rtol=1e-5)


def with_a_whole_last_layer(model):
    """A watched model computes the last layer at all positions, which rounds otherwise."""
    model.gpt.gpt_layers[-1].register_forward_hook(lambda *_: None)
    return model


def test_the_output_of_a_watched_linear_is_the_linear_s_bit_for_bit(model):
    batch = batch_of(4)
    with_a_whole_last_layer(model)
    before = model(batch["token_ids"], batch["attention_mask"])
    prepared(model)
    assert torch.equal(model(batch["token_ids"], batch["attention_mask"]), before)


# -- what it covers ----------------------------------------------------------------------------


def test_linears_are_covered_with_their_biases_and_the_rest_is_listed_for_adamw(model):
    optimizer = prepared(model).optimizer
    covered, others = optimizer.coverage["kfac"], optimizer.coverage["adamw"]
    assert sorted(covered + others) == sorted(name for name, _ in model.named_parameters())
    assert all("norm" in name or "embedding" in name for name in others)
    layers = len(model.gpt.gpt_layers)
    assert len(covered) == 2 * (6 * layers + 1)
    assert {"sentiment_head.bias", "gpt.gpt_layers.0.out_dense.weight"} < set(covered)
    assert all(repr(name) in repr(optimizer) for name in covered + others)


def test_a_bias_that_is_frozen_is_left_alone(model):
    linear = model.gpt.gpt_layers[0].out_dense
    linear.bias.requires_grad_(False)
    extension = prepared(model)
    start = linear.bias.clone()
    step(model, extension, seed=1)
    assert torch.equal(linear.bias, start)
    assert len(extension.optimizer.state[linear.weight]["input"]) == linear.weight.shape[1]


# -- resuming ----------------------------------------------------------------------------------


def ends_of(runs) -> list[dict]:
    ends = []
    for model, extension in runs:
        for seed in (7, 8, 9, 10):
            step(model, extension, seed)
        ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return ends


def test_a_model_that_is_watched_can_be_pickled_and_copied_with_its_optimizer(model):
    extension = prepared(model)
    step(model, extension, seed=1)
    pairs = [(model, extension), pickle.loads(pickle.dumps((model, extension)))]
    pairs.append(copy.deepcopy(pairs[0]))
    one, *others = ends_of(pairs)
    assert all(torch.equal(one[name], other[name]) for other in others for name in one)


# -- mistakes ----------------------------------------------------------------------------------


def test_a_layer_that_is_computed_past_is_named(model):
    extension = prepared(model)
    linear = model.gpt.gpt_layers[1].interm_dense
    model.gpt.gpt_layers[1].interm_dense.__class__ = Past
    assert isinstance(linear, nn.Linear)
    with pytest.raises(InputError, match=r"kfac: gpt\.gpt_layers\.1\.interm_dense has a gradient"):
        step(model, extension, seed=1)


class Past(nn.Linear):
    def __call__(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def test_a_factor_that_cannot_be_inverted_is_refused():
    for factor in (-torch.eye(3), torch.full((3, 3), math.nan)):
        with pytest.raises(InputError, match=r"is not positive with damping=0\.01: give a larger"):
            damped_inverse(factor, 0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"collect": 0},
        {"damping": 0.0},
        {"damping": math.nan},
        {"decay": 1.0},
        {"momentum": 1.0},
    ],
)
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"kfac: .*expected"):
        KfacExtension(**options)
