"""The kernels in Triton's interpreter, on a GPU if there is one, and through its compiler."""

import functools
import importlib
import importlib.util
from dataclasses import dataclass, replace

import pytest
import torch
from test_flash_attention import dense, with_gradients
from triton_interpreter import interpreting_process

from extensions.flash_attention import flash_attention
from utils import get_extended_attention_mask

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@dataclass(frozen=True)
class Case:
    t: int
    s: int
    k: int = 16
    block: int = 16
    dtype: torch.dtype = torch.float32
    hide: int = 0  # keys at the start of the first row
    lengths: tuple[int, ...] | None = None
    dropout: float = 0.0
    poison: bool = False  # not a number, in the whole blocks that follow the first row
    unit: bool = False  # values that read off the weights

    def tensors(self) -> list:
        """Query, key, value, gradient."""
        torch.manual_seed(self.t)
        shapes = [(2, 2, n, self.k) for n in (self.t, self.s, self.s, self.t)]
        tensors = [torch.randn(shape) for shape in shapes]
        if self.unit:
            tensors[2] = torch.eye(self.s, self.k).expand(shapes[1]).clone()
        if self.poison:
            first = -(-self.lengths[0] // self.block) * self.block
            for x in tensors:
                x[0, :, first:] = torch.nan
        return [x.to(self.dtype) for x in tensors]

    def hidden(self):
        hidden = torch.zeros(2, self.s, dtype=torch.bool)
        hidden[0, : self.hide] = True
        return hidden

    def lengths_tensor(self):
        return None if self.lengths is None else torch.tensor(self.lengths)


def through_kernels(case: Case, device: str = "cpu") -> list:
    """Output and gradients by Triton, as NumPy arrays: they come from another process."""
    *leaves, grad = (x.to(device) for x in case.tensors())
    leaves = [x.requires_grad_() for x in leaves]
    mask, lengths = None, case.lengths_tensor()
    if case.hide:
        mask = get_extended_attention_mask((~case.hidden()).long(), torch.float32).to(device)
    torch.manual_seed(11)
    out = flash_attention(
        *leaves, mask, case.dropout, block=case.block, kernel="triton", lengths=lengths
    )
    return [x.double().cpu().numpy() for x in with_gradients(out, leaves, grad)]


def by_definition(case: Case, kept=1.0) -> list:
    *leaves, grad = (x.double() for x in case.tensors())
    leaves = [x.requires_grad_() for x in leaves]
    out = dense(*leaves, hidden=case.hidden(), lengths=case.lengths_tensor(), kept=kept)
    return with_gradients(out, leaves, grad)


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=on_gpu)])
def run(request):
    """A function of a case: `through_kernels`, on the GPU or in a process with the interpreter."""
    if request.param == "cuda":
        yield functools.partial(through_kernels, device="cuda")
        return
    with interpreting_process() as pool:
        yield lambda case: pool.submit(through_kernels, case).result()


CASES = [
    Case(37, 37),
    Case(32, 32),
    Case(1, 37),
    Case(20, 37, k=40, block=32),
    Case(33, 33, k=128, block=32),
    Case(37, 37, hide=21),
    Case(20, 37, hide=21),
    Case(37, 37, lengths=(9, 30), hide=3),
    Case(37, 37, dtype=torch.float16),
]


def compare(found: list, expected: list, dtype=torch.float32) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06}[dtype]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), two, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_are_dense_attention(run, case):
    compare(run(case), by_definition(case), case.dtype)


def test_the_kernels_drop_the_same_forward_and_backward(run):
    case = Case(37, 37, k=37, dropout=0.25)
    unit = replace(case, unit=True)
    kept = torch.from_numpy(run(unit)[0]) / by_definition(unit)[0]  # (b, h, t, s)
    below = torch.ones(37, 37, dtype=torch.bool).tril()
    dropped = kept[..., below] < 0.5
    assert (dropped.double().mean() - 0.25).abs() < 4 * (0.25 * 0.75 / dropped.numel()) ** 0.5
    heads = torch.corrcoef(dropped.flatten(0, 1).double())
    assert (heads - torch.eye(4)).abs().max() < 4 / below.sum() ** 0.5
    kept = (kept >= 0.5) / 0.75
    compare(run(case), by_definition(case, kept))


def test_the_kernels_leave_out_blocks_that_follow_a_row(run):
    """What lies there is never read: were it, it would spoil everything."""
    case = Case(37, 37, lengths=(9, 37))
    compare(run(replace(case, poison=True)), by_definition(case))


@pytest.mark.parametrize("full", [True, False])
def test_triton_compiles_the_kernels_for_a_gpu_that_is_not_there(full, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 80, 32)
    kernels = importlib.import_module("engine.fast.flash_attention_triton")
    types = {"logsumexp": "*fp32", "delta": "*fp32", "scale": "fp32", "dropout": "fp32"}
    types |= {"t": "i32", "s": "i32", "heads": "i32"}
    constants = {"HEAD": 12, "PADDED": 16, "BLOCK": 16}
    if full:
        types |= {"hidden": "*i8", "lengths": "*i32", "seed": "*i64"}
    else:
        constants |= {"hidden": None, "lengths": None, "seed": None}
    for name in ("forward", "delta", "query_gradient", "key_gradient"):
        kernel = getattr(kernels, f"{name}_kernel")
        signature = {
            word: "constexpr" if word in constants else types.get(word, "*bf16")
            for word in kernel.arg_names
        }
        constexprs = {
            (kernel.arg_names.index(word),): constants[word]
            for word in constants
            if word in kernel.arg_names
        }
        source = compiler.ASTSource(kernel, signature, constexprs)
        assert compiler.compile(source, target=target).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_bfloat16_follows_the_definition_and_memory_is_linear():
    case = Case(100, 100, k=64, block=128, dtype=torch.bfloat16)
    compare(through_kernels(case, "cuda"), by_definition(case), case.dtype)
    t = 8192
    query = torch.randn(1, 1, t, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.max_memory_allocated()
    flash_attention(query, query, query, None, 0.1, block=64).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < t * t / 2
