"""GPTQ: algorithm 1 against the paper's own equations, models layer by layer, and whole runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from course_files import THINGS, VERSES, call_main, write, write_model
from task_checkpoints import KINDS, build, work_beside, write_originals

from engine.batches import TokenDataset, make_loader
from engine.checkpoint import load_tree, save_tree
from engine.errors import InputError
from engine.fast.gpt2 import accelerate
from programs.gptq import gptq as program
from programs.gptq.gptq import Parts, quantize_layers
from programs.gptq.rounding import Hessian, Options, best_rows, gptq, row_errors
from programs.quantize.grid import Grid, round_to_nearest
from programs.quantize.job import load_quantized
from programs.quantize.linear import (
    LINEARS,
    QuantizedLinear,
    Recipe,
    quantize_model,
)

ASYMMETRIC = Grid(3, 8, "asymmetric", "mse")
GRIDS = [Grid(8), Grid(4), Grid(4, 8), Grid(2, 16), ASYMMETRIC]


def problem(rows: int = 12, columns: int = 32, seed: int = 0) -> SimpleNamespace:
    """Weights, and inputs that depend on each other as those of a network do."""
    torch.manual_seed(seed)
    mixed = torch.randn(columns, columns, dtype=torch.float64)
    inputs = torch.randn(300, columns, dtype=torch.float64) @ mixed
    weight = torch.randn(rows, columns, dtype=torch.float64)
    return SimpleNamespace(
        weight=weight, inputs=inputs, hessian=2 * inputs.T @ inputs / len(inputs)
    )


def same(one, other) -> bool:
    names = ("integers", "scale", "zero_point")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# -- one matrix --------------------------------------------------------------------------------


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_independent_inputs_of_one_size_give_rounding_to_nearest(grid, act_order):
    weight = problem().weight
    options = Options(block=8, act_order=act_order)
    found = gptq(weight, 3 * torch.eye(32, dtype=torch.float64), grid, options)
    assert same(found, round_to_nearest(weight, grid))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_it_is_the_papers_equations_with_the_inverse_updated_in_plain_sight(bits):
    """Eq. 2 and 3, without Cholesky: Gaussian elimination of one input after the other."""
    case = problem()
    weight, most = case.weight.numpy().copy(), 2 ** (bits - 1) - 1
    damping = 0.01 * np.mean(np.diag(case.hessian.numpy()))
    inverse = np.linalg.inv(case.hessian.numpy() + damping * np.eye(32))
    scale = (np.abs(weight).max(axis=1) / most).astype(np.float32).astype(np.float64)
    integers = np.zeros(weight.shape)
    for q in range(32):
        integers[:, q] = np.clip(np.round(weight[:, q] / scale), -most, most)
        error = (weight[:, q] - integers[:, q] * scale) / inverse[q, q]
        weight -= np.outer(error, inverse[q])
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, q] = 1.0  # it is out
    found = gptq(case.weight, case.hessian, Grid(bits), Options())
    np.testing.assert_array_equal(found.integers.numpy(), integers)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_size_of_a_block_changes_nothing(grid, act_order):
    case = problem()
    results = [
        gptq(case.weight, case.hessian, grid, Options(block, act_order=act_order))
        for block in (1, 5, 8, 32, 128)
    ]
    assert all(same(result, results[0]) for result in results)
    assert not same(results[0], round_to_nearest(case.weight, grid))


def test_no_row_has_a_larger_error_than_by_rounding_to_nearest():
    worse = 0
    for seed in range(20):
        case, grid = problem(rows=16, columns=8, seed=seed), Grid(2)
        nearest = row_errors(case.weight, round_to_nearest(case.weight, grid), case.hessian)
        plain = gptq(case.weight, case.hessian, grid, Options())
        worse += int((row_errors(case.weight, plain, case.hessian) > nearest).sum())
        chosen, sums = best_rows(case.weight, case.hessian, grid, Options())
        errors = row_errors(case.weight, chosen, case.hessian)
        assert (errors <= nearest).all()
        assert sums["gptq"] == pytest.approx(float(errors.sum()))
        assert sums["nearest"] == pytest.approx(float(nearest.sum()))
    assert worse > 0  # algorithm 1 alone does not promise it


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_error_in_the_output_falls_far_below_that_of_rounding_to_nearest(grid):
    case = problem(rows=64)
    found, _ = best_rows(case.weight, case.hessian, grid, Options())

    def output_error(rounded) -> float:
        change = case.inputs @ (case.weight - rounded.weight.double()).T
        return float(change.square().mean())

    assert output_error(found) < 0.75 * output_error(round_to_nearest(case.weight, grid))
    summed = row_errors(case.weight, found, case.hessian).mean()
    assert output_error(found) == pytest.approx(float(summed) / 2)


def test_an_error_in_the_norm_of_h_is_that_by_hand():
    weight, hessian = torch.tensor([[0.5, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 4.0]]).double()
    rounded = SimpleNamespace(weight=torch.tensor([[0.0, 2.0]]))
    assert float(row_errors(weight, rounded, hessian)) == 0.5 - 2 * 0.5 + 4


@pytest.mark.parametrize("grid", [Grid(4), Grid(4, 8)], ids=str)
def test_an_input_that_is_always_zero_plays_no_part(grid):
    case, dead = problem(), [3, 17]
    inputs = case.inputs.clone()
    inputs[:, dead] = 0
    hessian = 2 * inputs.T @ inputs / len(inputs)
    found = gptq(case.weight, hessian, grid, Options())
    weight = found.weight[:, dead].double()
    width = grid.group_size or 32
    steps = found.scale[:, [place // width for place in dead]]
    assert ((weight - case.weight[:, dead]).abs() <= steps * (0.5 + 1e-6)).all()
    if not grid.group_size:
        others = [i for i in range(32) if i not in dead]
        scale = round_to_nearest(case.weight, grid).scale
        assert torch.equal(found.scale, scale)
        widest = case.weight.abs().argmax(dim=1)
        rows = torch.tensor([int(place) not in dead for place in widest])
        alone = gptq(case.weight[rows][:, others], hessian[others][:, others], grid, Options())
        assert torch.equal(found.integers[rows][:, others], alone.integers)
    assert torch.equal(
        gptq(case.weight, torch.zeros_like(hessian), grid, Options()).integers,
        round_to_nearest(case.weight, grid).integers,
    )


def test_act_order_takes_the_largest_inputs_first():
    """It is the plain algorithm on columns that stand in this order already."""
    case, grid = problem(), Grid(4)
    order = case.hessian.diagonal().argsort(descending=True)
    sorted_first = gptq(case.weight[:, order], case.hessian[order][:, order], grid, Options())
    found = gptq(case.weight, case.hessian, grid, Options(act_order=True))
    assert torch.equal(found.integers[:, order], sorted_first.integers)
    assert not same(found, gptq(case.weight, case.hessian, grid, Options()))


def test_with_groups_act_order_keeps_each_column_in_its_own_group():
    case, grid = problem(), Grid(4, 8)
    found = gptq(case.weight, case.hessian, grid, Options(act_order=True))
    assert torch.equal(found.scale, round_to_nearest(case.weight, grid).scale)
    change = found.weight.double() - case.weight
    assert change.abs().max() < 3 * case.weight.abs().max()


def test_without_damping_inputs_that_cannot_be_inverted_are_an_error_in_one_line():
    inputs = problem().inputs[:, :1].expand(-1, 8)
    weight, hessian = torch.randn(4, 8), inputs.T @ inputs
    gptq(weight, hessian, Grid(4), Options(damping=0.01))
    with pytest.raises(InputError, match=r"--damping 0.0: .* give a larger one"):
        gptq(weight, hessian - 1e-9 * torch.eye(8), Grid(4), Options(damping=0.0))


def test_the_running_mean_is_the_mean_over_all_tokens_whatever_the_batches():
    inputs = problem().inputs.float()
    hessian = Hessian(32, inputs.device)
    for part in inputs.split([1, 0, 200, 99]):
        hessian.add(part)
    assert hessian.tokens == 300
    torch.testing.assert_close(
        hessian.matrix, 2 * inputs.double().T @ inputs.double() / 300, rtol=1e-5, atol=1e-4
    )


# -- a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def texts(count: int = 24) -> TokenDataset:
    torch.manual_seed(2)
    rows = [torch.randint(3, 300, (5 + i % 9,)).tolist() for i in range(count)]
    return TokenDataset(rows, [str(i) for i in range(count)])


def quantized(folder, tmp_path, recipe, options=None, extension=(), monkeypatch=None):
    """(model, batches, the Hessians that were used, one for each set of linears)."""
    model, _ = build("sst", folder, extension)
    used, batches = [], list(make_loader(texts(), 7))
    if monkeypatch:

        def noted(weight, hessian, *rest):
            used.append(hessian)
            return best_rows(weight, hessian, *rest)

        monkeypatch.setattr(program, "best_rows", noted)
    quantize_layers(model, batches, recipe, options or Options(), Parts(tmp_path / "parts", "key"))
    return model, batches, used


@pytest.mark.parametrize(
    "recipe", [Recipe(Grid(2, 16)), Recipe(Grid(8), True, True), Recipe(ASYMMETRIC)], ids=str
)
@pytest.mark.parametrize("extension", [(), ("reft:rank=2",)], ids=str)
def test_each_linear_is_calibrated_on_what_the_rounded_ones_before_it_give(
    recipe, extension, folder, tmp_path, monkeypatch
):
    """In the finished model each linear's inputs, padding left out, give the H it had."""
    model, batches, used = quantized(
        folder, tmp_path, recipe, extension=extension, monkeypatch=monkeypatch
    )
    places = [f"gpt.gpt_layers.{i}.{names[0]}" for i in range(2) for names in LINEARS]
    assert len(used) == len(places) == 8
    if not extension:
        accelerate(model, extended=True)  # all positions, in the last layer too
    seen = {name: [] for name in places}
    for batch in batches:
        real = batch["attention_mask"].bool()
        hooks = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name, real=real: seen[name].append(inputs[0][real])
            )
            for name in places
        ]
        with torch.no_grad():
            model(batch["token_ids"], batch["attention_mask"])
        for hook in hooks:
            hook.remove()
    for name, hessian in zip(places, used, strict=True):
        inputs = torch.cat(seen[name]).double()
        assert len(inputs) == sum(texts().lengths)
        expected = 2 * inputs.T @ inputs / len(inputs)
        torch.testing.assert_close(hessian, expected, rtol=1e-4, atol=1e-5)


def test_biases_stay_and_all_else_that_is_no_linear_of_a_layer(folder, tmp_path):
    model, _, _ = quantized(folder, tmp_path, Recipe(Grid(4, 16)))
    plain = build("sst", folder)[0].state_dict()
    for name, tensor in model.state_dict().items():
        if not name.endswith(("packed", "scale")):
            assert torch.equal(tensor, plain[name])
    kinds = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(kinds) == 12 and all(bool(m.bias.all()) for m in kinds)


def test_the_model_is_nearer_to_the_original_than_by_rounding_to_nearest(folder, tmp_path):
    recipe = Recipe(Grid(2, 16))
    model, batches, _ = quantized(folder, tmp_path, recipe)
    plain, nearest = build("sst", folder)[0], build("sst", folder)[0]
    quantize_model(nearest.gpt, recipe)
    for one in (model, plain, nearest):
        accelerate(one, extended=True)

    @torch.no_grad()
    def apart(other) -> float:
        total = 0.0
        for batch in batches:
            real, inputs = batch["attention_mask"].bool(), (batch["token_ids"],)
            one, two = (m.gpt(*inputs)["last_hidden_state"][real] for m in (plain, other))
            total += float((one - two).square().sum())
        return total

    assert apart(model) < 0.8 * apart(nearest)


def test_16_bits_change_nothing(folder, tmp_path):
    model, _, _ = quantized(folder, tmp_path, Recipe(Grid(16)))
    plain = build("sst", folder)[0].state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


# -- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    write_originals(root)
    write(root / "text.txt", "\n".join(VERSES * 30) + "\n<|endoftext|>\n" + " ".join(THINGS))
    return root


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    work_beside(monkeypatch, originals, tmp_path)
    return tmp_path


def run(monkeypatch, *words) -> None:
    flags = ["--data_dir", "data"]
    if "--group_size" not in words:
        flags += ["--group_size", "16"]
    call_main(monkeypatch, "programs.gptq.gptq", *words, *flags)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tasks_checkpoint_becomes_a_file_that_quantize_uses(kind, place, monkeypatch, capsys):
    extra = ["--max_new_tokens", "2"] if kind == "sonnet" else []
    run(monkeypatch, "--checkpoint", f"{kind}.safetensors", *extra)
    said, out = capsys.readouterr().out, f"{kind}-gptq-int4-g16.safetensors"
    assert "of rounding to nearest's" in said and f"programs.quantize --quantized {out}" in said
    assert Path(out).exists() and not Path(f"{out}.parts").exists()
    words = ["--quantized", out, "--predict", "--data_dir", "data", *extra]
    call_main(monkeypatch, "programs.quantize.quantize", *words)
    assert len(list(Path("predictions").iterdir())) == 2
    said = capsys.readouterr().out
    after = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))["after"]
    assert all(f"{value:.4f}" in said for name, value in after.items() if name.startswith("dev"))


def test_a_text_of_ones_own_calibrates_too_and_gives_other_integers(place, monkeypatch):
    for out, flags in {"a": ["--calibration", "text.txt"], "b": []}.items():
        run(monkeypatch, "--checkpoint", "sst.safetensors", "--out", out, *flags)
    one, two = (load_quantized(path)[0].state_dict() for path in "ab")
    assert any(not torch.equal(one[name], two[name]) for name in one if name.endswith("packed"))


def test_an_interrupted_run_goes_on_to_the_same_bits(place, monkeypatch, capsys):
    words = ["--checkpoint", "sst.safetensors", "--act_order", "--grid", "asymmetric"]
    run(monkeypatch, *words, "--out", "whole")
    done, calls = program.quantize_linears, []

    def stops(gpt, *rest):
        calls.append(rest[1])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return done(gpt, *rest)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(program, "quantize_linears", stops)
        run(monkeypatch, *words, "--out", "stopped")
    assert stop.value.code == 130 and "goes on by --resume" in capsys.readouterr().err
    assert [path.name for path in Path("stopped.parts").iterdir()] == ["layer-0.safetensors"]
    assert not Path("stopped").exists()
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(program, "quantize_linears", lambda *all: calls.append(1) or done(*all))
        with pytest.raises(SystemExit):
            run(patch, *words[:2], "--out", "stopped", "--resume")
        assert "of a run with other flags or texts" in capsys.readouterr().err
        run(patch, *words, "--out", "stopped", "--resume")
    assert len(calls) == 4  # of the second layer alone
    one, two = (load_tree(path)["model"] for path in ("whole", "stopped"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert not Path("stopped.parts").exists()


def test_inputs_are_not_taken_by_stopping_the_model(folder, tmp_path, monkeypatch):
    """Every pass that begins in a layer comes to its end."""
    ends = []
    model, _ = build("sst", folder)
    for layer in model.gpt.gpt_layers:
        forward = layer.forward
        layer.forward = lambda *all, forward=forward: (
            ends.extend([0])
            or (
                forward(*all),
                ends.append(1),
            )[0]
        )
    batches = list(make_loader(texts(8), 8))
    quantize_layers(model, batches, Recipe(Grid(8)), Options(), Parts(tmp_path / "p", ""))
    assert ends.count(0) == ends.count(1) == 4 + 1 + 4


BAD = {
    "--checkpoint q.safetensors": "quantized already, expected a best.safetensors",
    "--checkpoint sst.safetensors --bits 5": "--bits 5: expected one of 2, 3, 4, 8, or 16",
    "--checkpoint sst.safetensors --group_size 24": "does not divide the 32 inputs of self_attent",
    "--checkpoint sst.safetensors --limit 3": "tokens to calibrate on, expected at least 128",
    "--checkpoint sst.safetensors --calibration_tokens 9": "the task's training rows: ",
    "--checkpoint sst.safetensors --calibration short.txt": "short.txt: 5 tokens to calibrate on",
    "--checkpoint sst.safetensors --calibration nowhere.txt": "nowhere.txt: no such file",
    "--checkpoint sst.safetensors --calibration_tokens 0": "--calibration_tokens 0: expected",
    "--checkpoint sst.safetensors --block 0": "--block 0: expected at least 1",
    "--checkpoint sst.safetensors --damping nan": "--damping nan: expected at least 0",
    "--checkpoint sst.safetensors --resume": "--resume: no sst-gptq-int4-g16.safetensors.parts/",
    "--bits 4": "--checkpoint: not given",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_refused_in_one_line_and_nothing_is_written(
    flags, place, monkeypatch, refused
):
    write("short.txt", "the film was good")
    save_tree("q.safetensors", {"task": "quantized sst"})
    before = sorted(place.iterdir())
    with refused(BAD[flags]):
        run(monkeypatch, *flags.split())
    assert sorted(place.iterdir()) == before
