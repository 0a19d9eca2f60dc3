"""NF4 by the paper's table, its error by its levels, and adapters on it as on dense weights."""

import copy
import json
import platform
import subprocess
import sys

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import FORGET
from config import GPT2Config
from engine.errors import InputError
from engine.extension import apply_extensions
from engine.files import ROOT
from engine.settings import Settings
from extensions.lora import LoRA, adapters, merge
from extensions.normal_float import NF4Linear, levels, packed, unpacked
from extensions.qlora import QLoRA
from models.gpt2 import GPT2Model
from programs.tasks import TASKS

TRIED = {
    "qlora": Tried(
        "rank=8",
        varied=[
            "rank=2,alpha=3,dropout=0.1,targets=key+out_dense,rslora=true,dora=true",
            "block=32,double=false,plus=4",
        ],
    )
}
PAPER = [  # Dettmers et al. 2023, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
WAYS = [{"block": 64, "double": True}, {"block": 48, "double": False}]


def linear(out_features=96, in_features=80, scale=0.1) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=scale)
    return layer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("qlora") / "model", hidden_size=32)


def test_the_levels_are_the_paper_s():
    torch.testing.assert_close(levels(), torch.tensor(PAPER), atol=1e-6, rtol=0)


def test_two_indices_make_a_byte_and_come_back():
    indices = torch.randint(16, (6, 64), dtype=torch.uint8)
    assert packed(indices).shape == (6 * 32,) and packed(indices).dtype == torch.uint8
    assert torch.equal(unpacked(packed(indices)).view(6, 64), indices.int())


@pytest.mark.parametrize("way", WAYS)
def test_each_weight_is_the_nearest_level_times_its_block_s_constant(way):
    layer = linear()
    block = way["block"]
    expected = []
    for values in layer.weight.detach().flatten().split(block):
        constant = values.abs().max()
        nearest = (values[:, None] / constant - torch.tensor(PAPER)).abs().argmin(dim=1)
        expected.append(torch.tensor(PAPER)[nearest] * constant)
    expected = torch.cat(expected).view_as(layer.weight)
    off = 1e-6 if not way["double"] else 1 / 127  # a constant's own rounding
    spread = layer.weight.detach().abs().max()
    torch.testing.assert_close(NF4Linear(layer, **way).weight, expected, rtol=0, atol=spread * off)


def test_a_constant_is_off_by_half_a_step_of_its_256():
    layer = linear(256, 256)
    layer.weight.data *= torch.logspace(-1, 1, 256)[:, None]
    once, twice = (NF4Linear(layer, block=64, double=double) for double in (False, True))
    # Both have the same levels, and where that is 1 the weight is the constant.
    blocks = [nf4.weight.view(-1, 64) for nf4 in (once, twice)]
    found, expected = (block.abs().amax(dim=1) for block in (blocks[1], blocks[0]))
    deviations = (expected - expected.mean()).view(-1, 256).abs().amax(dim=1)
    bound = (deviations / 127 / 2).repeat_interleave(256)
    assert bool(((found - expected).abs() <= bound * 1.001 + 1e-7).all())
    assert not torch.equal(found, expected)


def test_what_the_levels_hold_comes_back_and_zeros_are_zeros():
    layer = nn.Linear(64, 2)
    layer.weight.data = torch.stack([0.5 * torch.tensor(PAPER).repeat(4), torch.zeros(64)])
    assert torch.equal(NF4Linear(layer, block=64, double=False).weight[1], torch.zeros(64))
    torch.testing.assert_close(
        NF4Linear(layer, block=64, double=False).weight, layer.weight, atol=1e-6, rtol=0
    )


def test_a_weight_takes_little_more_than_four_bits():
    nf4 = NF4Linear(linear(1024, 768), block=64, double=True)
    stored = [p for name, p in nf4.named_parameters() if name != "bias"]
    bits = 8 * sum(p.numel() * p.element_size() for p in stored)
    assert bits / (1024 * 768) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert not any(p.requires_grad for p in nf4.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_output_and_gradient_are_those_of_the_dense_weights(dtype):
    nf4 = NF4Linear(linear(), block=64, double=True)
    x = torch.randn(3, 7, 80, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found, expected = nf4(x), F.linear(same, nf4.weight, nf4.bias)
    assert torch.equal(found, expected)
    found.float().square().sum().backward()
    expected.float().square().sum().backward()
    torch.testing.assert_close(
        x.grad, same.grad, rtol=0.02 if dtype != torch.float32 else 1e-5, atol=1e-3
    )


def test_a_product_keeps_no_matrix_for_the_backward_pass():
    nf4, kept = NF4Linear(linear(), block=64, double=True), []
    x = torch.randn(3, 80, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        y = nf4(x)
    y.sum().backward()
    assert kept == [] and x.grad is not None


# -- the model ---------------------------------------------------------------------------------


def prepared(folder, extension):
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    torch.manual_seed(1)
    apply_extensions(model, [extension])
    return model


def output(model):
    return model.gpt(torch.arange(18).view(2, 9))["last_hidden_state"]


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"targets": "value", "rslora": True}])
def test_the_adapters_learn_as_on_dense_weights(folder, options):
    ours = prepared(folder, QLoRA(rank=4, **options))
    dense = prepared(folder, LoRA(**{"rank": 4, "targets": "all"} | options))
    for name, module in ours.named_modules():
        if isinstance(module, NF4Linear):
            place = dense.get_submodule(name)
            place.weight.data.copy_(module.weight)
    for name, adapter in adapters(dense).items():
        nn.init.normal_(adapter.B.weight, std=0.3)
        other = ours.get_submodule(name)
        other.A.load_state_dict(adapter.A.state_dict())
        other.B.load_state_dict(adapter.B.state_dict())
        if adapter.magnitude is not None:
            other.magnitude.data.copy_(adapter.magnitude)
    torch.testing.assert_close(output(ours), output(dense), atol=1e-5, rtol=1e-4)
    output(ours).square().sum().backward()
    output(dense).square().sum().backward()
    trained = {name: p for name, p in dense.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == (name in trained)
        if name in trained:
            torch.testing.assert_close(parameter.grad, trained[name].grad, atol=1e-3, rtol=1e-3)


FREED = """
import torch
from torch import nn
from engine.parallel import keep_freed_memory, return_freed_memory

def resident():
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmRSS"].split()[0]) // 1024

keep_freed_memory()
return_freed_memory()
before, blocks = resident(), [torch.ones(2**22) for _ in range(20)]
small = [torch.ones(100) for _ in range(20)]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_tensors_go_back_to_the_system_at_once():
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) < 50, done.stderr  # of 320


def test_every_linear_of_the_layers_is_kept_in_4_bits_and_all_else_as_it_was(folder):
    plain = GPT2Model.from_pretrained(str(folder))
    model = prepared(folder, QLoRA(rank=2, targets="query"))
    kept = [m for m in model.modules() if isinstance(m, NF4Linear)]
    assert len(kept) == 6 * len(plain.gpt_layers)
    assert not any(
        isinstance(m, nn.Linear) and min(m.weight.shape) > 2 for m in model.gpt.gpt_layers.modules()
    )
    assert torch.equal(model.gpt.word_embedding.weight, plain.word_embedding.weight)


def test_merged_weights_are_the_rounded_ones_and_the_change(folder):
    model = prepared(folder, QLoRA(rank=4))
    for adapter in adapters(model).values():
        nn.init.normal_(adapter.B.weight, std=0.3)
    expected = output(model)
    merge(model)
    torch.testing.assert_close(output(model), expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(m, NF4Linear) for m in copy.copy(model).modules())


def test_a_block_of_half_a_byte_is_refused():
    with pytest.raises(InputError, match="qlora: block=63: expected an even number"):
        QLoRA(block=63)


def test_lora_refuses_its_own_options():
    with pytest.raises(InputError, match="lora: targets=heads: no heads"):
        QLoRA(targets="heads")


SETTINGS = {"num_labels": 5, "hidden_dropout_prob": 0.0, "fine_tune_mode": "full-model"}


def test_a_model_in_4_bits_is_the_same_from_mapped_weights(folder, monkeypatch):
    settings = Settings(SETTINGS | {"model_size": str(folder), "extension": ["qlora"]})
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(TASKS["sst"].build_model(settings).state_dict())
        monkeypatch.setattr("engine.hub.mapped_gpt2", lambda *_: None)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


PEAK = """import json, sys
import torch
from benchmarks.timing import forget_peak
from engine.devices import peak_mb
from engine.settings import Settings
from programs.tasks import TASKS

cpu, settings = torch.device("cpu"), json.loads(sys.argv[1])
for folder in sys.argv[2:]:  # the first one brings all that has to be imported
    forget_peak(cpu)
    before = peak_mb(cpu)
    TASKS["sst"].build_model(Settings(settings | {"model_size": folder}))
print(peak_mb(cpu) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not FORGET.exists(), reason="needs Linux's /proc")
def test_a_model_that_is_kept_in_4_bits_is_never_whole_in_memory(tmp_path):
    """In the file its layers have 303 MB, in 4 bits 39; read whole it takes 585."""
    shape = {"vocab_size": 61, "num_attention_heads": 8, "hidden_size": 512}
    for layers in (1, 24):
        config = GPT2Config(**shape, num_hidden_layers=layers, intermediate_size=2048)
        GPT2Model(config).save_pretrained(tmp_path / str(layers))
    settings = json.dumps(SETTINGS | {"extension": ["qlora"]})
    command = [sys.executable, "-c", PEAK, settings, str(tmp_path / "1"), str(tmp_path / "24")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 300
