"""Grids of integers: what the code published with GPTQ does, and what a search may do."""

import numpy as np
import pytest
import torch

from engine.batches import TokenDataset, make_loader
from engine.files import ROOT
from engine.hub import load_gpt2, load_tokenizer
from programs.gptq.gptq import hessian_of, run_layer
from programs.gptq.rounding import Hessian, Options, gptq, row_errors
from programs.quantize.grid import KINDS, SHARES, Grid, pack, round_to_nearest, unpack
from programs.quantize.linear import LINEARS

FEW_BITS = (2, 3, 4)


def some_weight(rows: int = 12, columns: int = 32, seed: int = 0) -> torch.Tensor:
    """Gaussians; then rows all above 0, all below 0, all alike, and 0."""
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64)
    weight[0], weight[1], weight[2], weight[3] = weight[0].abs(), -weight[1].abs(), 0.3, 0
    return weight


def some_hessian(columns: int = 32, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    mixed = torch.randn(columns, columns, dtype=torch.float64)
    inputs = torch.randn(300, columns, dtype=torch.float64) @ mixed
    return 2 * inputs.T @ inputs / len(inputs)


def published_range(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, width) -> scale and zero point, counted from 0, of each row; 0 is in the range."""
    lowest = np.minimum(weight.astype(np.float32).min(axis=1), 0)
    highest = np.maximum(weight.astype(np.float32).max(axis=1), 0)
    empty = lowest == highest
    lowest[empty], highest[empty] = -1, 1
    scale = (highest - lowest) / np.float32(2**bits - 1)
    return scale.astype(np.float64), np.round(-lowest / scale).astype(np.float64)


def published_integers(column, scale, zero, bits: int) -> np.ndarray:
    return np.clip(np.round(column / scale) + zero, 0, 2**bits - 1)


def published_gptq(weight: np.ndarray, hessian: np.ndarray, bits: int, width: int):
    """Column by column, a new range for each group at its first column: (integers, weights)."""
    left, columns = weight.copy(), weight.shape[1]
    damped = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    integers, rounded = np.zeros_like(left), np.zeros_like(left)
    for j in range(columns):
        if j % width == 0:
            scale, zero = published_range(left[:, j : j + width], bits)
        integers[:, j] = published_integers(left[:, j], scale, zero, bits)
        rounded[:, j] = scale * (integers[:, j] - zero)
        error = (left[:, j] - rounded[:, j]) / upper[j, j]
        left[:, j:] -= np.outer(error, upper[j, j:])
    return integers, rounded


# -- the asymmetric grid ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("bits", [*FEW_BITS, 8])
def test_nearest_integers_are_those_of_the_published_grid(bits, width):
    weight = some_weight()
    found = round_to_nearest(weight, Grid(bits, width, "asymmetric"))
    groups = weight.view(-1, width).numpy()
    scale, zero = published_range(groups, bits)
    expected = published_integers(groups, scale[:, None], zero[:, None], bits)
    values = scale[:, None] * (expected - zero[:, None])
    np.testing.assert_allclose(found.weight.view(-1, width), values, rtol=1e-6, atol=1e-30)
    some = groups.any(axis=1)  # a group of zeros has no range of its own
    lowest = 2 ** (bits - 1)
    integers = found.integers.view(-1, width).numpy() + float(lowest)
    np.testing.assert_array_equal(integers[some], expected[some])
    zero_point = found.zero_point.flatten().numpy() + float(lowest)
    np.testing.assert_array_equal(zero_point[some], zero[some])
    assert np.abs(values - groups)[some].max() <= (scale[some].max() / 2) * (1 + 1e-5)


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("bits", [*FEW_BITS, 8])
def test_gptq_gives_the_integers_of_the_published_algorithm(bits, width):
    weight, hessian = some_weight()[4:], some_hessian()
    found = gptq(weight, hessian, Grid(bits, width % 32, "asymmetric"), Options(block=5))
    integers, rounded = published_gptq(weight.numpy(), hessian.numpy(), bits, width)
    np.testing.assert_array_equal(found.integers.numpy() + 2.0 ** (bits - 1), integers)
    np.testing.assert_allclose(found.weight, rounded, rtol=1e-5, atol=1e-6)
    nearest = round_to_nearest(weight, Grid(bits, width % 32, "asymmetric"))
    assert not torch.equal(found.integers, nearest.integers)


@pytest.mark.parametrize("bits", FEW_BITS)
@pytest.mark.parametrize("width", [0, 8])
def test_it_has_all_integers_and_by_them_less_error_on_gaussians(bits, width):
    errors = dict.fromkeys(KINDS, 0.0)
    for seed in range(10):
        weight, hessian = some_weight(seed=seed)[4:], some_hessian(seed=seed)
        for kind in KINDS:
            found = gptq(weight, hessian, Grid(bits, width, kind), Options())
            errors[kind] += float(row_errors(weight, found, hessian).sum())
            low, high = found.integers.aminmax()
            assert (int(low), int(high)) == Grid(bits, width, kind).ends
    assert errors["asymmetric"] < errors["symmetric"]


@pytest.mark.slow
@pytest.mark.parametrize("bits", FEW_BITS)
def test_on_average_it_has_less_error_on_the_layers_of_gpt2_mini(bits):
    gpt, tokenizer = load_gpt2("gpt2-mini").eval(), load_tokenizer("gpt2-mini")
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    tokens = tokenizer(text, verbose=False)["input_ids"][:4096]
    rows = [tokens[i : i + 512] for i in range(0, len(tokens), 512)]
    batches = list(make_loader(TokenDataset(rows, list(map(str, range(len(rows))))), 8))
    ratios = []
    with torch.no_grad():
        hidden = [gpt.embed(batch["token_ids"]) for batch in batches]
        masks = [batch["attention_mask"] for batch in batches]
        for layer in gpt.gpt_layers:
            for names in LINEARS:
                hessian = hessian_of(gpt, layer, names[0], hidden, masks)
                weight = layer.get_submodule(names[0]).weight[:128]
                both = [
                    gptq(weight, hessian, Grid(bits, 64, kind), Options())
                    for kind in ("asymmetric", "symmetric")
                ]
                one, two = (float(row_errors(weight, each, hessian).sum()) for each in both)
                ratios.append(one / two)
            hidden = run_layer(gpt, layer, hidden, masks)
    assert np.mean(ratios) < 1


# -- numbers of the published code -----------------------------------------------------------------

# auto-gptq 0.7.1, GPTQ.add_batch and fasterquant, on `published_problem` in float32, damping 0.01.
# By (bits, group size, grid, scale, act_order): the integers, counted from 0, one hexadecimal digit
# each and one word a row; the zero points, likewise; and the scales. It was run as follows:
# groups: with blocks as wide as a group. In wider ones it finds a group's range in weights that
#   lack the updates of their own block. With act_order its static_groups is set.
# mse: with norm 2; its default is 2.4.
# symmetric: its own symmetric grid has 2^b integers, from −2^(b−1) on, and so other scales. So its
#   Quantizer was given this grid: scale max|w| / Q, zero point Q, and 2 Q as the largest integer.
PUBLISHED = {
    (4, 0, "asymmetric", "max", False): (
        "fd43a52c2770ea02 69cda653be0885b4 2b02ae711127fc10 c44c4890fd2268cc",
        "6 7 4 7",
        [0.1433899, 0.1577922, 0.1209072, 0.1307131],
    ),
    (4, 0, "asymmetric", "max", True): (
        "fe43a42c2860eb02 6acda644af0885b4 1c02ae711227fc01 c44c4790fd2268cc",
        "6 7 4 7",
        [0.1433899, 0.1577922, 0.1209072, 0.1307131],
    ),
    (4, 8, "asymmetric", "max", False): (
        "fe22940c3881fc03 59efb420bf0885b4 1c02af711227fd01 f65f5ab0fd0148bc",
        "57 67 44 96",
        [0.1246981, 0.138987, 0.1030947, 0.1536153, 0.1123959, 0.1179447, 0.1100001, 0.1164659],
    ),
    (4, 8, "asymmetric", "max", True): (
        "fe22940c2860eb02 5aefb420bf0885b4 1c02af711217fc11 f66f5ab0fd0157bb",
        "56 67 44 96",
        [0.1246981, 0.1382901, 0.1030947, 0.1577922, 0.1123959, 0.1185473, 0.1100001, 0.117793],
    ),
    (4, 8, "asymmetric", "mse", False): (
        "fe22940c3881fc03 59efb420bf0885b4 1c01bf711227fc01 f65f5ab0fd0148bc",
        "57 67 44 96",
        [0.1234511, 0.1365565, 0.1030947, 0.1536153, 0.1101479, 0.1193119, 0.1078001, 0.1160081],
    ),
    (2, 0, "asymmetric", "mse", False): (
        "3301120302103200 1223210023012020 0300332000123300 2012021023001122",
        "1 1 1 1",
        [0.5663901, 0.528604, 0.4534022, 0.5489948],
    ),
    (2, 0, "asymmetric", "max", True): (
        "3210210201103200 1222201022011120 0301231101023301 2012021023001122",
        "1 1 1 1",
        [0.7169495, 0.7889611, 0.6045362, 0.6535653],
    ),
    (2, 8, "asymmetric", "max", False): (
        "3301120201103100 1223210022011120 0301232010113301 3123132123001122",
        "11 11 11 21",
        [0.6234904, 0.7485454, 0.5154737, 0.7813652, 0.5619793, 0.6009566, 0.5500004, 0.7565359],
    ),
    (2, 8, "asymmetric", "mse", True): (
        "3300210201103200 1233200023011120 0300332001023300 3123132033001122",
        "11 11 11 21",
        [0.5237319, 0.6499632, 0.4536168, 0.6311689, 0.4383438, 0.4801166, 0.4895004, 0.5300683],
    ),
    (4, 0, "symmetric", "max", False): (
        "ed55a64c4882ea24 79cca653bd1794b4 5c46bd955569dd46 b54c4881ed2368bc",
        "7 7 7 7",
        [0.1803152, 0.1741907, 0.193699, 0.1456885],
    ),
    (4, 8, "symmetric", "max", False): (
        "ed55a64c3972eb24 6adeb552be0885b4 5c46be955569ec55 c44c4880ed2368bb",
        "77 77 77 77",
        [0.1803152, 0.165223, 0.1350958, 0.1623011, 0.1754602, 0.1875487, 0.1344109, 0.1441969],
    ),
    (2, 0, "symmetric", "max", True): (
        "2211110202012110 1212110112011111 0201212010212201 1102011022001122",
        "1 1 1 1",
        [1.262206, 1.219335, 1.355893, 1.01982],
    ),
    (2, 8, "symmetric", "max", True): (
        "2201110201102201 1122201022011111 1201221111112211 1102011022001122",
        "11 11 11 11",
        [1.262206, 1.185709, 0.9456707, 1.219335, 1.228222, 1.355893, 0.9408761, 1.01982],
    ),
}


def published_problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (4, 16) and the inputs of 40 tokens (40, 16), by formula."""
    n = torch.arange(4 * 16, dtype=torch.float64).view(4, 16)
    weight = torch.sin(1 + n * n / 7 + n) * (1 + 0.5 * torch.cos(n))
    n = torch.arange(40 * 16, dtype=torch.float64).view(40, 16)
    inputs = torch.sin(0.3 * n * n / 11 + n)
    return weight, inputs + 0.8 * inputs.roll(1, 1)


def words(integers: torch.Tensor) -> str:
    return " ".join("".join(f"{value:x}" for value in row) for row in integers.tolist())


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_gptq_gives_the_integers_of_the_published_code(case):
    bits, width, kind, scale, act_order = case
    grid, (weight, inputs) = Grid(bits, width, kind, scale), published_problem()
    hessian = Hessian(16, weight.device)
    hessian.add(inputs)
    found = gptq(weight, hessian.matrix, grid, Options(act_order=act_order))
    integers, zero_points, scales = PUBLISHED[case]
    lowest, _ = grid.ends
    assert words(found.integers - lowest) == integers
    assert words(found.zero_point - lowest) == zero_points
    np.testing.assert_allclose(found.scale.flatten(), scales, rtol=1e-5)
    assert not torch.equal(found.integers, round_to_nearest(weight, grid).integers)


# -- the search for a scale ------------------------------------------------------------------------


def squared_errors(weight, grid: Grid) -> torch.Tensor:
    """Of each group."""
    change = weight - round_to_nearest(weight, grid).weight.double()
    return grid.split(change.square()).sum(dim=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits, width", [(2, 0), (3, 8), (4, 0), (4, 8), (8, 0)])
def test_a_search_raises_no_group_s_squared_error(bits, width, kind):
    weight = some_weight(rows=200)
    plain, searched = (squared_errors(weight, Grid(bits, width, kind, s)) for s in ("max", "mse"))
    assert (searched <= plain * (1 + 1e-5) + 1e-12).all()
    assert bits == 8 or searched.sum() < 0.98 * plain.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_takes_the_best_of_all_shares(kind):
    weight, grid = some_weight(), Grid(3, 0, kind)
    widest, zero_point = grid.fit(weight)
    low, high = grid.ends
    least = np.full(len(weight), np.inf)
    for share in np.arange(0.21, 1.005, 0.01):
        scale = widest.double().numpy() * share
        zero = zero_point.double().numpy()
        integers = np.clip(np.round(weight.numpy() / scale) + zero, low, high)
        error = np.square(weight.numpy() - scale * (integers - zero)).sum(axis=1)
        least = np.minimum(least, error)
    assert (len(SHARES), SHARES[0], SHARES[-1]) == (80, 1.0, 0.21)
    found = squared_errors(weight, Grid(3, 0, kind, "mse")).sum(dim=1)
    np.testing.assert_allclose(found, least, rtol=1e-5, atol=1e-12)


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [*FEW_BITS, 8])
@pytest.mark.parametrize("columns", [1, 8, 11, 24])
def test_every_integer_comes_out_of_the_bytes_as_it_went_in(bits, columns):
    low, high = Grid(bits, 0, "asymmetric").ends
    integers = torch.randint(low, high + 1, (50, columns), dtype=torch.int8)
    integers[0], integers[1] = low, high
    assert torch.equal(unpack(pack(integers, bits), bits, columns), integers)


def test_eight_integers_of_3_bits_fill_three_bytes_the_first_in_the_lowest_bits():
    packed = pack(torch.tensor([[-4, 3, 0, 1, -1, 2, -3, -2]], dtype=torch.int8), 3)
    bits = "".join(f"{value + 4:03b}" for value in (-2, -3, 2, -1, 1, 0, 3, -4))
    assert int.from_bytes(bytes(packed[0].tolist()), "little") == int(bits, 2)
    assert packed.dtype == torch.uint8 and packed.shape == (1, 3)
