"""Integers in the place of weights: rounding, packing, matrix products, and whole runs."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from course_files import WORKER, call_main, write_model
from task_checkpoints import KINDS, build, program_flags, save, work_beside, write_originals
from torch import nn
from torch.nn import functional as F

from engine.checkpoint import load_tree, save_tree
from extensions.integer_linear import export_integers
from extensions.lora import adapters
from programs.quantize import quantize
from programs.quantize.grid import Grid, pack, round_to_nearest, unpack
from programs.quantize.job import (
    absorbed,
    load_quantized,
    open_job,
    seconds_in_turn,
    task_flags,
)
from programs.quantize.linear import (
    LINEARS,
    DynamicLinear,
    QuantizedEmbedding,
    QuantizedLinear,
    Recipe,
    dequantize_model,
    float_integer_matmul,
    integer_matmul,
    quantize_model,
)
from programs.tasks import TASKS

SYMMETRIC = [Grid(8), Grid(8, 6), Grid(4), Grid(4, 6), Grid(2, 12)]
ASYMMETRIC = [Grid(8, 0, "asymmetric"), Grid(3, 8, "asymmetric", "mse"), Grid(4, 6, "asymmetric")]


def some_linear(rows: int = 10, columns: int = 24) -> nn.Linear:
    torch.manual_seed(1)
    linear = nn.Linear(rows, columns)
    linear.weight = nn.Parameter(torch.randn(rows, columns), requires_grad=False)
    linear.bias = nn.Parameter(torch.randn(rows), requires_grad=False)
    return linear


def replaced(linear: nn.Linear, recipe: Recipe) -> QuantizedLinear:
    parent = nn.Module()
    parent.it = linear
    return recipe.replace(parent, "it", round_to_nearest(linear.weight, recipe.grid))


# -- rounding and packing ----------------------------------------------------------------------


@pytest.mark.parametrize("grid", SYMMETRIC, ids=str)
def test_weights_are_on_the_symmetric_grid_half_a_step_away_at_most(grid):
    weight = some_linear().weight
    rounded = round_to_nearest(weight, grid)
    most, width = 2 ** (grid.bits - 1) - 1, grid.group_size or 24
    assert rounded.integers.dtype == torch.int8 and rounded.scale.shape == (10, 24 // width)
    assert rounded.integers.view(-1, width).abs().amax(dim=1).eq(most).all()  # never −2^(b−1)
    for row in range(10):
        for start in range(0, 24, width):
            group = weight[row, start : start + width].numpy().astype(np.float64)
            step = np.abs(group).max() / most
            expected = step * np.clip(np.round(group / step), -most, most)
            found = rounded.weight[row, start : start + width].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            assert np.abs(found - group).max() <= step / 2 * (1 + 1e-5)


def test_a_group_of_zeros_stays_zeros():
    for dtype in (torch.float32, torch.float64):
        rounded = round_to_nearest(torch.zeros(2, 8, dtype=dtype), Grid(4, 4))
        assert torch.equal(rounded.weight, torch.zeros(2, 8))


@pytest.mark.parametrize("bits, columns", [(8, 7), (4, 8), (4, 7), (2, 8), (2, 5)])
def test_packed_integers_come_out_as_they_went_in(bits, columns):
    most = 2 ** (bits - 1) - 1
    integers = torch.randint(-most, most + 1, (50, columns), dtype=torch.int8)
    packed = pack(integers, bits)
    assert packed.nbytes == 50 * -(-columns * bits // 8)
    assert torch.equal(unpack(packed, bits, columns), integers)


def test_a_byte_holds_two_int4_the_first_in_the_lower_half():
    packed = pack(torch.tensor([[-7, 7, 0, 1]], dtype=torch.int8), 4)
    assert packed.tolist() == [[0xF1, 0x98]]


# -- products ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n, rows, columns", [(1, 3, 5), (17, 8, 16), (40, 24, 4096)])
def test_products_of_integers_are_exact_with_and_without_kernels(n, rows, columns, monkeypatch):
    draw = np.random.default_rng(0)
    x = draw.integers(-127, 128, (n, columns)).astype(np.int8)
    weight = draw.integers(-127, 128, (rows, columns)).astype(np.int8)
    x[0], weight[0] = 127, 127
    x[0, -1] = 0  # 127² · 4095 is odd and above 2^24: no float32
    expected = x.astype(np.int64) @ weight.astype(np.int64).T
    tensors = torch.from_numpy(x), torch.from_numpy(weight)
    with_kernels = integer_matmul(*tensors)
    monkeypatch.delattr(torch, "_int_mm", raising=False)
    for found in (with_kernels, integer_matmul(*tensors), float_integer_matmul(*tensors)):
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("n, rows, columns", [(1, 8, 16), (40, 24, 4096), (3, 3, 5)])
def test_products_of_integers_are_exact_on_a_gpu(n, rows, columns):
    x = torch.randint(-127, 128, (n, columns), dtype=torch.int8)
    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    found = integer_matmul(x.cuda(), weight.cuda()).cpu()
    assert torch.equal(found, float_integer_matmul(x, weight))


@pytest.mark.parametrize("grid", SYMMETRIC + ASYMMETRIC, ids=str)
def test_a_weight_only_linear_is_that_of_the_rounded_weights_bias_and_all(grid):
    linear = some_linear()
    new, x = replaced(linear, Recipe(grid)), torch.randn(2, 3, 24)
    rounded = round_to_nearest(linear.weight, grid).weight
    assert torch.equal(new(x), F.linear(x, rounded, linear.bias))
    assert torch.equal(new(torch.zeros(1, 24))[0], linear.bias)
    assert new(x.bfloat16()).dtype == torch.bfloat16


def test_a_dynamic_linear_of_an_asymmetric_grid_takes_the_zero_points_into_account():
    """It multiplies the rounded inputs with the weights of its integers."""
    linear, x = some_linear(), torch.randn(2, 3, 24)
    linear.weight += 0.5
    new = replaced(linear, Recipe(Grid(8, 0, "asymmetric"), dynamic=True))
    assert bool(new.zero_point.any())
    step = x.abs().amax(dim=-1, keepdim=True) / 127
    torch.testing.assert_close(new(x), F.linear((x / step).round() * step, new.weight, new.bias))


def test_a_dynamic_linear_is_its_formula_bias_and_all():
    linear, x = some_linear(), torch.randn(2, 3, 24)
    x[0, 0] *= 1e4  # an outlier among tokens is its own affair
    x[1, 2] = 0
    new = replaced(linear, Recipe(Grid(8), dynamic=True))
    assert isinstance(new, DynamicLinear)
    found = new(x)
    weight, bias = linear.weight.double().numpy(), linear.bias.double().numpy()
    steps = np.abs(weight).max(axis=1) / 127
    integers = np.round(weight / steps[:, None])
    for i, token in enumerate(x.view(6, 24).double().numpy()):
        step = np.abs(token).max() / 127 or 1.0
        expected = np.round(token / step) @ integers.T * step * steps + bias
        np.testing.assert_allclose(found.view(6, 10)[i].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1, 2], linear.bias)
    exact = linear(x)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found[1, :2], exact[1, :2], atol=0.15, rtol=0)


def test_an_embedding_in_int8_gives_the_rows_that_its_head_multiplies():
    embedding = QuantizedEmbedding((9, 6), Grid(8))
    weight = torch.randn(9, 6)
    embedding.hold(round_to_nearest(weight, Grid(8)))
    ids = torch.tensor([[0, 8], [3, 3]])
    assert torch.equal(embedding(ids), embedding.weight[ids])
    torch.testing.assert_close(embedding.weight, weight, atol=0.02, rtol=0)


# -- in a model --------------------------------------------------------------------------------

TOKENS = torch.arange(5, 41).view(3, 12)
MASK = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])


@torch.no_grad()
def logits(model):
    return model(TOKENS, MASK)[..., :50]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), hidden_size=64, dropout=0.1)


def test_16_bits_leave_the_model_as_it_is_bit_for_bit(folder):
    model, _ = build("sst", folder)
    before, expected = model.state_dict(), logits(model)
    quantize_model(model.gpt, Recipe(Grid(16)))
    after = model.state_dict()
    assert before.keys() == after.keys() and torch.equal(logits(model), expected)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, 16), Grid(3, 0, "asymmetric")], ids=str)
def test_all_linears_of_the_layers_are_rounded_and_nothing_else(folder, grid):
    model, _ = build("sst", folder)
    plain, _ = build("sst", folder)
    quantize_model(model.gpt, Recipe(grid))
    rounded = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(rounded) == 2 * 6
    for name, module in rounded.items():
        linear = plain.get_submodule(name)
        linear.weight.data = round_to_nearest(linear.weight.detach(), grid).weight
        assert torch.equal(module.bias, linear.bias) and bool(linear.bias.all())
    assert torch.equal(logits(model), logits(plain))
    dequantize_model(model)
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["sonnet", "paraphrase"])
def test_the_tied_head_works_with_an_embedding_in_int8(folder, kind):
    model, _ = build(kind, folder)
    expected = logits(model)
    quantize_model(model.gpt, Recipe(Grid(8), embedding=True))
    assert isinstance(model.gpt.word_embedding, QuantizedEmbedding)
    apart = (logits(model) - expected)[MASK.bool() if kind == "sonnet" else ...].abs()
    assert 0 < apart.mean() < 0.05 * expected.abs().mean()


ADAPTED = {
    "lora": ["lora:rank=4,targets=all"],
    "dora": ["lora:rank=4,dora=true"],
    "quadapter": [
        "lora:rank=2,targets=interm_dense",
        "qat:bits=16,activation_bits=16,quadapter=true",
    ],
    "ema": ["ema", "smart:proximal=1"],
}


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_are_absorbed_by_the_weights(folder, name):
    model, settings = build("sst", folder, ADAPTED[name])
    for norm in [m for m in model.modules() if isinstance(m, nn.LayerNorm)]:
        nn.init.normal_(norm.bias.detach())
    expected = logits(model)
    plain, settings = absorbed(model, settings, KINDS["sst"][0])
    assert settings.extension == [] and not adapters(plain)
    assert plain.state_dict().keys() == build("sst", folder)[0].state_dict().keys()
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)


def test_a_model_trained_for_its_bits_is_rounded_to_the_integers_of_its_training(folder):
    model, settings = build("sst", folder, ["qat:bits=4,activation_bits=16"])
    exported, expected = export_integers(model), logits(model)
    plain, _ = absorbed(model, settings, KINDS["sst"][0])
    quantize_model(plain.gpt, Recipe(Grid(4)))
    for name, linear in exported.items():
        assert torch.equal(plain.get_submodule(name).integers(), linear.weight)
    torch.testing.assert_close(logits(plain), expected)


@pytest.mark.parametrize("flag", ["reft:rank=2", "prefix:length=3", "sliding_window:window=4"])
def test_what_acts_beside_the_linears_stays(folder, flag):
    model, settings = build("sst", folder, [flag])
    expected = logits(model)
    same, settings = absorbed(model, settings, KINDS["sst"][0])
    assert same is model and settings.extension == [flag]
    quantize_model(model.gpt, Recipe(Grid(8)))
    torch.testing.assert_close(logits(model), expected, rtol=0.05, atol=0.05)


# -- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """data/, model/ and a checkpoint of each kind."""
    root = tmp_path_factory.mktemp("originals")
    write_originals(root, rows=20, hidden_size=64)
    return root


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    work_beside(monkeypatch, originals, tmp_path)
    return tmp_path


def run(monkeypatch, *words) -> None:
    call_main(monkeypatch, "programs.quantize.quantize", *words, "--data_dir", "data")


def own_program(monkeypatch, kind: str, checkpoint) -> None:
    words = [*program_flags(kind), "--data_dir", "data", "--checkpoint", checkpoint]
    call_main(monkeypatch, Path(KINDS[kind][0].command[0]).stem, *words)


def predictions() -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in Path("predictions").iterdir()}
    for name in found:
        (Path("predictions") / name).unlink()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_predicts_what_its_plain_weights_predict(kind, place, monkeypatch, capsys):
    extra = ["--predict"]
    extra += ["--max_new_tokens", "4"] if kind == "sonnet" else []
    flags = ["--bits", "4", "--group_size", "16", "--dequantized", "plain.safetensors"]
    flags += ["--out", "q.safetensors"]
    run(monkeypatch, "--checkpoint", f"{kind}.safetensors", *flags, *extra)
    said, packed = capsys.readouterr().out, predictions()
    assert "before: dev" in said and "after: dev" in said and "times smaller" in said
    own_program(monkeypatch, kind, "plain.safetensors")
    assert len(packed) == 2 and predictions() == packed
    capsys.readouterr()
    run(monkeypatch, "--quantized", "q.safetensors", *extra)
    assert predictions() == packed
    said = capsys.readouterr().out
    report = json.loads(Path("q.safetensors.json").read_text(encoding="utf-8"))
    for name, value in report["after"].items():
        assert not name.startswith("dev") or f"{value:.4f}" in said


@pytest.mark.parametrize(
    "flags, bits, groups, embedding",
    [
        ("--bits 8", 8, 1, 4),
        ("--bits 4 --group_size 32 --embedding", 4, 32, 1),
        ("--bits 3 --group_size 16 --grid asymmetric", 3, 16, 4),
    ],
)
def test_the_file_has_as_many_bytes_as_its_integers_need(
    flags, bits, groups, embedding, place, monkeypatch
):
    run(monkeypatch, "--checkpoint", "sonnet.safetensors", *flags.split(), "--out", "q.safetensors")
    data = Path("q.safetensors").read_bytes()
    [header] = struct.unpack("<Q", data[:8])
    model, _ = build("sonnet", "model")
    state = model.state_dict()
    expected = 0
    for name, tensor in state.items():
        place_of = name.removesuffix(".weight").split(".", 3)[-1]
        if name.endswith("weight") and any(place_of in names for names in LINEARS):
            scales = tensor.shape[1] // groups if groups > 1 else 1
            bytes_each = 5 if "asymmetric" in flags else 4  # a scale, and a zero point
            expected += tensor.numel() * bits // 8 + bytes_each * len(tensor) * scales
        elif name == "gpt.word_embedding.weight":
            expected += tensor.numel() * embedding + (4 * len(tensor) if embedding == 1 else 0)
        else:
            expected += 4 * tensor.numel()
    assert len(data) - 8 - header == expected
    assert expected < 0.6 * sum(4 * tensor.numel() for tensor in state.values())


def test_a_file_of_an_earlier_version_is_read(place, monkeypatch):
    """It spells "quantised" in its task, and "input_quantiser" in its tensors' names.

    Its recipe names no kind of grid.
    """
    save("qat.safetensors", "sst", *build("sst", "model", ["qat:bits=4"]))
    tree = load_tree("qat.safetensors")
    names = [name.replace("quantizer", "quantiser") for name in tree["model"]]
    assert names != list(tree["model"])
    save_tree(
        "old.safetensors", tree | {"model": dict(zip(names, tree["model"].values(), strict=True))}
    )
    run(monkeypatch, "--checkpoint", "old.safetensors", "--out", "q.safetensors")
    expected, tree = logits(load_quantized("q.safetensors")[0]), load_tree("q.safetensors")
    assert tree["task"] == "quantized sst"
    facts = tree["recipe"] | {"grid": {"bits": 8, "group_size": 0}}
    assert not any(name.endswith("zero_point") for name in tree["model"])
    save_tree("q.safetensors", tree | {"task": "quantised sst", "recipe": facts})
    assert torch.equal(logits(load_quantized("q.safetensors")[0]), expected)
    run(monkeypatch, "--quantized", "q.safetensors")


FILES = {
    "--bits 16": Recipe(Grid(16)),
    "--bits 8 --mode dynamic": Recipe(Grid(8), dynamic=True),
    "--bits 8 --mode dynamic --grid asymmetric": Recipe(Grid(8, 0, "asymmetric"), dynamic=True),
    "--bits 3 --grid asymmetric --scale mse": Recipe(Grid(3, 64, "asymmetric", "mse")),
    "--bits 4 --group_size 32 --scale mse": Recipe(Grid(4, 32, "symmetric", "mse")),
}


@pytest.mark.parametrize("flags", FILES)
def test_a_file_read_again_is_the_model_that_was_written(flags, place, monkeypatch):
    run(monkeypatch, "--checkpoint", "sst.safetensors", *flags.split(), "--out", "q.safetensors")
    loaded, _ = load_quantized("q.safetensors")
    model, _ = build("sst", "model")
    quantize_model(model.gpt, FILES[flags])
    last = loaded.gpt.gpt_layers[1].out_dense
    assert isinstance(last, DynamicLinear) == ("dynamic" in flags)
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in loaded.state_dict().items())
    assert torch.equal(logits(loaded), logits(model))


def test_a_run_with_a_technique_beside_the_linears_goes_through(place, monkeypatch):
    save("reft.safetensors", "sst", *build("sst", "model", ["reft:rank=2", "ema"]))
    flags = ["--dequantized", "plain.safetensors", "--predict"]
    run(monkeypatch, "--checkpoint", "reft.safetensors", *flags, "--limit", "6")
    assert Path("reft-int8.safetensors").exists() and Path("plain").is_dir()
    packed = predictions()
    words = [*program_flags("sst"), "--data_dir", "data", "--limit", "6"]
    call_main(monkeypatch, "classifier", *words, "--checkpoint", "plain.safetensors")
    assert predictions() == packed


def test_the_task_refuses_integers_in_one_line(place, monkeypatch, refused, capsys):
    run(monkeypatch, "--checkpoint", "sst.safetensors", "--out", "q.safetensors")
    capsys.readouterr()
    with refused("a checkpoint of task 'quantized sst', expected 'sst'"):
        own_program(monkeypatch, "sst", "q.safetensors")


def some_job():
    args = quantize.get_args(["--checkpoint", "sst.safetensors", "--data_dir", "data"])
    return open_job(args, task_flags(args), WORKER)


def test_timing_waits_for_no_gpu_that_is_not_there(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("synchronized"))
    job = some_job()
    rows, [seconds] = seconds_in_turn(job, [job.model])
    assert rows == 10 and seconds > 0


def test_models_take_turns_and_neither_s_first_pass_counts(place, monkeypatch):
    """A first pass may be slow, and another one beside something else that the machine does."""
    job, plain, clock, told = some_job(), torch.nn.Module(), [0.0], []
    costs = {plain: [98, 5, 5, 70, 6, 4], job.model: [3, 2, 9, 2, 2, 2]}
    costs = {model: iter(seconds) for model, seconds in costs.items()}

    def evaluate(model, loader, device):
        told.append(model)
        clock[0] += next(costs[model])

    monkeypatch.setattr(TASKS["sst"], "evaluate", evaluate)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("programs.quantize.job.TIMED_ROUNDS", 5)
    assert seconds_in_turn(job, [plain, job.model]) == (10, [5, 2])
    assert told == [plain, job.model] * 6


def test_timed_rows_are_spread_over_the_dev_set(place, monkeypatch):
    job, seen = some_job(), []
    job.loaders["dev"] = [{"sent_ids": [i]} for i in range(20)]
    monkeypatch.setattr(TASKS["sst"], "evaluate", lambda model, loader, _: seen.append(loader))
    assert seconds_in_turn(job, [job.model])[0] == 7
    assert [batch["sent_ids"][0] for batch in seen[0]] == [0, 3, 6, 9, 12, 15, 18]


def test_a_report_compares_the_checkpoint_as_it_was_with_the_file(place, monkeypatch, capsys):
    """Adapters absorbed, in float, though the model that was evaluated first is now integers."""
    save("lora.safetensors", "sst", *build("sst", "model", ["lora:rank=4,targets=all"]))
    timed = []

    def in_turn(job, models):
        timed.extend(models)
        return seconds_in_turn(job, models)

    monkeypatch.setattr(quantize, "seconds_in_turn", in_turn)
    run(monkeypatch, "--checkpoint", "lora.safetensors", "--out", "q.safetensors")
    plain, packed = (model.gpt.gpt_layers[0].out_dense for model in timed)
    assert type(plain) is nn.Linear and isinstance(packed, QuantizedLinear)
    assert not any(model.training for model in timed)
    report = json.loads(Path("q.safetensors.json").read_text(encoding="utf-8"))
    before, after = (report[when]["seconds"] for when in ("before", "after"))
    said = f"{report['timed_rows']} dev rows take {before:.3f} seconds before, {after:.3f} after\n"
    assert report["timed_rows"] == 10 and said in capsys.readouterr().out


BAD = {
    "--checkpoint q.safetensors": "quantized already, expected a best.safetensors: use it",
    "--quantized sst.safetensors": "no file of integers: give it by --checkpoint",
    "--checkpoint sst.safetensors --bits 5": "--bits 5: expected one of 2, 3, 4, 8, or 16",
    "--checkpoint sst.safetensors --grid odd": "--grid: invalid choice: 'odd'",
    "--checkpoint sst.safetensors --scale odd": "--scale: invalid choice: 'odd'",
    "--checkpoint sst.safetensors --bits 0": "--bits 0: expected one of",
    "--checkpoint sst.safetensors --group_size 48": "does not divide the 64 inputs of self_att",
    "--checkpoint sst.safetensors --group_size -1": "--group_size -1: expected at least 0",
    "--checkpoint sst.safetensors --bits 4 --mode dynamic": "give --bits 8 --group_size 0",
    "--checkpoint sst.safetensors --group_size 16 --mode dynamic": "give --bits 8 --group_size 0",
    "--checkpoint sst.safetensors --out sst.safetensors": "it would replace what is read",
    "--checkpoint sst.safetensors --out /proc/x/y": "cannot be written",
    "--checkpoint sst.safetensors --dequantized data": "a folder, expected the path of a file",
    "--checkpoint nowhere.safetensors": "no such checkpoint",
    "--checkpoint last.safetensors": "the state of a run, not its best epoch",
    "--checkpoint pretrain.safetensors": "of task 'pretrain', expected one of sst, cfimdb",
    "--checkpoint sst.safetensors --quantized q.safetensors": "--quantized: give the one",
    "": "--checkpoint, --quantized: give the one, to quantize",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_refused_in_one_line_and_nothing_is_written(
    flags, place, monkeypatch, refused
):
    save_tree("q.safetensors", {"task": "quantized sst"})
    save_tree("last.safetensors", {"task": "sst", "progress": {}, "model": {}})
    save_tree("pretrain.safetensors", {"task": "pretrain", "settings": {}})
    before = sorted(place.iterdir())
    with refused(BAD[flags]):
        run(monkeypatch, *flags.split())
    assert sorted(place.iterdir()) == before


def test_a_damaged_file_is_one_line(place, monkeypatch, capsys):
    run(monkeypatch, "--checkpoint", "sst.safetensors", "--out", "q.safetensors")
    whole = Path("q.safetensors").read_bytes()
    Path("q.safetensors").write_bytes(whole[:-100])
    with pytest.raises(SystemExit):
        run(monkeypatch, "--quantized", "q.safetensors")
    assert "no whole checkpoint of this project" in capsys.readouterr().err


def test_products_of_integers_go_to_the_cpu_where_the_device_has_no_float64(monkeypatch):
    x, weight = (torch.randint(-127, 128, (5, 300), dtype=torch.int8) for _ in range(2))
    moved = []
    monkeypatch.setattr("programs.quantize.linear.widest_float", lambda device: torch.float32)
    monkeypatch.delattr(torch, "_int_mm")
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, to=torch.Tensor.to: (moved.append(a), to(self, *a))[1]
    )
    found = integer_matmul(x, weight)
    assert ("cpu",) in moved and torch.equal(found, x.int() @ weight.int().T)
