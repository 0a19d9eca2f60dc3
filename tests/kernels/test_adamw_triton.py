"""AdamW's kernel for GPUs in Triton's interpreter, on a GPU if there is one, and as PTX."""

import functools
import importlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from triton_interpreter import interpreting_process

from kernels import adamw, adamw_triton
from kernels.adamw_triton import BLOCK, WARPS
from optimizer import AdamW, update_each
from utils import ROOT

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
HYPER = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=on_gpu)])
def run(request):
    """Calls a function that has a device: here with the GPU, or in a process that interprets."""
    if request.param == "cuda":
        yield functools.partial(call, "cuda")
        return
    with interpreting_process() as pool:
        yield lambda *args: pool.submit(call, "cpu", *args).result()


def call(device: str, function, *args):
    return function(*args, device)


class Counted:
    """A kernel that notes the grid of each launch."""

    def __init__(self, kernel):
        self.kernel, self.grids = kernel, []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


def counted(patch) -> Counted:
    module = importlib.import_module("kernels.adamw_triton_kernel")
    kernel = Counted(module.adamw_kernel)
    patch.setattr(module, "adamw_kernel", kernel)
    return kernel


@dataclass(frozen=True)
class Case:
    sizes: tuple[int, ...]
    decay: float = 0.02
    before: int = 4  # elements: they, and some that follow, are not the tensor's
    broken: float | None = None  # one number of the last gradient

    def memory(self, device: str) -> list[list[torch.Tensor]]:
        """Param, grad, exp_avg, exp_avg_sq of each size, with what lies around them."""
        random = torch.Generator().manual_seed(0)
        lengths = [self.before + size + 9 for size in self.sizes]
        memory = [list(torch.randn(4, length, generator=random)) for length in lengths]
        if self.broken is not None:
            memory[-1][1][self.before + self.sizes[-1] // 2] = self.broken
        return [
            [x.to(device), g.to(device), m.to(device), v.abs().to(device)] for x, g, m, v in memory
        ]

    def update(self, update, memory) -> None:
        tensors = [
            tuple(x[self.before : self.before + size] for x in of_one)
            for of_one, size in zip(memory, self.sizes, strict=True)
        ]
        step_sizes = [0.1 * (i + 1) for i in range(len(tensors))]
        update(tensors, step_sizes, **HYPER, decay=self.decay)


def through_kernel(case: Case, device: str) -> dict:
    """All memory afterwards, as NumPy arrays (it comes from another process), and the grids."""
    memory = case.memory(device)
    with pytest.MonkeyPatch.context() as patch:
        kernel = counted(patch)
        case.update(adamw_triton.update_all, memory)
    return {
        "memory": [[x.cpu().numpy() for x in of_one] for of_one in memory],
        "grids": kernel.grids,
    }


BORDERS = (BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 17)
CASES = [
    Case((1, 0, 5, 77, 1001)),
    Case((1, 0, 5, 77, 1001), decay=0.0),
    Case((0,)),
    Case(BORDERS),
    Case(BORDERS, before=5),  # 16 divides no address
    Case((3, 2 * BLOCK + 9), broken=float("nan")),
    Case((3, 2 * BLOCK + 9), broken=float("inf")),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_launch_moves_all_as_the_formula_does_and_nothing_around_it(run, case):
    result, expected = run(through_kernel, case), case.memory("cpu")
    case.update(update_each, expected)
    found = [[torch.from_numpy(x) for x in of_one] for of_one in result["memory"]]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert sum(int(param.isnan().sum()) for param, *_ in found) == (case.broken is not None)
    assert result["grids"] == [(sum(-(-size // BLOCK) for size in case.sizes),)]


@dataclass
class Far:
    """The end of a tensor of 2³¹ + 5 elements that is nowhere else."""

    end: torch.Tensor

    def __getattr__(self, name: str):
        return getattr(self.end, name)

    def numel(self) -> int:
        return 2**31 + len(self.end)

    def data_ptr(self) -> int:
        return self.end.data_ptr() - 4 * 2**31


def far_end(case: Case, device: str) -> list:
    memory, last_block = case.memory(device), adamw_triton.block_table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adamw_triton, "block_table", lambda *args: last_block(*args)[-1:])
        case.update(
            lambda tensors, *args, **hyper: adamw_triton.update_all(
                [[Far(x) for x in of_one] for of_one in tensors], *args, **hyper
            ),
            memory,
        )
    return [x.cpu().numpy() for x in memory[0]]


@needs_triton
def test_a_tensor_may_have_more_elements_than_an_int32_counts(run):
    case = Case((5,))
    found, [expected] = run(far_end, case), case.memory("cpu")
    case.update(update_each, [expected])
    torch.testing.assert_close([torch.from_numpy(x) for x in found], expected)


def trained(shapes, steps: int, fewest: int, device: str) -> dict:
    """Parameters after some steps of AdamW, which looks for this kernel from so many elements."""
    random = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=random).to(device)) for s in shapes]
    optimizer = AdamW(params, lr=0.05, weight_decay=0.1)
    with pytest.MonkeyPatch.context() as patch:
        kernel = counted(patch)
        patch.setattr(adamw, "KERNELS", {device: adamw_triton})
        patch.setattr(adamw, "FEWEST", fewest)
        adamw._tried.cache_clear()
        for _ in range(steps):
            for param in params:
                param.grad = torch.randn(param.shape, generator=random).to(device)
            optimizer.step()
        adamw._tried.cache_clear()
    return {"params": [x.detach().cpu().numpy() for x in params], "launches": len(kernel.grids)}


def compare_training(run, shapes) -> None:
    fast, plain = (run(trained, shapes, 4, fewest) for fewest in (1, 2**62))
    assert fast["launches"] == 1 + 4  # once to show that it can
    assert plain["launches"] == 0
    for a, b in zip(fast["params"], plain["params"], strict=True):
        torch.testing.assert_close(torch.from_numpy(a), torch.from_numpy(b), rtol=1e-5, atol=1e-5)


@needs_triton
def test_the_optimizer_goes_the_same_way_with_it(run):
    compare_training(run, [(70, 30), (7,), (0, 3), (), (33, 5)])


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_a_model_of_millions_goes_the_same_way():
    shapes = [(5003, 768), (768,), *[(768, 768), (1,), (3072, 768), (3072,)] * 3]
    compare_training(functools.partial(call, "cuda"), shapes)


@needs_triton
@pytest.mark.parametrize("aligned", [True, False])
def test_it_compiles_for_a_gpu_that_is_not_there_into_loads_of_16_bytes(
    aligned, monkeypatch, tmp_path
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    kernel = importlib.import_module("kernels.adamw_triton_kernel").adamw_kernel
    types = {"table": "*i64", "blocks": "*i32", "ALIGNED": "constexpr", "BLOCK": "constexpr"}
    signature = {word: types.get(word, "fp32") for word in kernel.arg_names}
    values = {"ALIGNED": aligned, "BLOCK": BLOCK}
    constants = {(kernel.arg_names.index(word),): values[word] for word in values}
    source = compiler.ASTSource(kernel, signature, constants)
    made = compiler.compile(source, target=target, options={"num_warps": WARPS})
    ptx, quads = made.asm["ptx"], BLOCK // (32 * WARPS) // 4  # of a tensor's elements, in a thread
    assert made.asm["cubin"]
    assert ptx.count("ld.global.v4.b32") == 4 * quads * aligned
    assert ptx.count("st.global.v4.b32") == 3 * quads * aligned
    assert "sqrt.rn.f32" in ptx and "div.rn.f32" in ptx
    assert "approx" not in ptx and "div.full" not in ptx


@needs_triton
@pytest.mark.parametrize("gpu, interpreted", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_it_is_for_a_gpu_or_else_for_the_interpreter(gpu, interpreted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
    monkeypatch.setenv("TRITON_INTERPRET", str(interpreted))
    assert adamw_triton.is_available() == (gpu != interpreted)


WITHOUT = """
import sys
from kernels import adamw_triton
import optimizer, torch
assert "triton" not in sys.modules, "imported too early"
sys.modules["triton"] = None
torch.cuda.is_available = lambda: True
assert not adamw_triton.is_available()
"""


def test_without_triton_it_is_not_available_and_nothing_fails():
    subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, check=True)
