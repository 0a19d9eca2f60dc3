"""Accelerators other than CUDA GPUs, which no test has: stood in for by what torch would say."""

from types import SimpleNamespace

import pytest
import torch
from tiny_run import Averager, run, summed_loss, weights

import classifier
from engine import devices
from engine.batches import to_device
from engine.devices import (
    device_of,
    has_bf16_units,
    has_fp16_units,
    has_tf32,
    random_state,
    set_random_state,
    widest_float,
)
from engine.errors import InputError, is_out_of_memory
from engine.gradients import Gradients
from engine.options import FitOptions
from engine.parallel import Worker, start_worker
from engine.recorded_gradients import make_gradients
from engine.recorder import RECORDERS
from engine.sampling import draw_from_nucleus

MPS, XPU, CUDA, CPU = (torch.device(kind) for kind in ("mps", "xpu", "cuda", "cpu"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)


class Stub(SimpleNamespace):
    """In the place of torch.mps and the like: one device, whose generator is two bytes."""

    def __init__(self, count: int = 1):
        super().__init__(state=torch.tensor([3, 4], dtype=torch.uint8), freed=0, count=count)

    def device_count(self) -> int:
        return self.count

    def get_rng_state(self, device):
        return self.state

    def set_rng_state(self, state, device):
        self.state = state

    def empty_cache(self):
        self.freed += 1


@pytest.fixture
def accelerator(monkeypatch):
    """`accelerator(MPS)`: from then on the machine has one of these."""

    def there_is(device, count: int = 1) -> Stub:
        stub = Stub(count)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
        monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
        monkeypatch.setattr(torch, "get_device_module", lambda device: stub)
        return stub

    return there_is


@pytest.mark.parametrize("device", [MPS, XPU, CUDA])
def test_use_gpu_takes_the_accelerator_that_torch_names(device, accelerator):
    accelerator(device)
    assert start_worker(use_gpu=True) == Worker(torch.device(device.type, 0))
    assert device_of(use_gpu=True) == device and device_of(use_gpu=False) == CPU
    assert start_worker(use_gpu=False) == Worker(CPU)


def test_more_processes_than_accelerators_are_refused(accelerator, monkeypatch):
    accelerator(XPU, count=2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="2 XPU GPUs are visible, this process needs number 2"):
        start_worker(use_gpu=True)


def test_without_an_accelerator_use_gpu_is_refused(accelerator):
    accelerator(None, count=0)
    with pytest.raises(InputError, match="--use_gpu: 0 CUDA GPUs are visible"):
        start_worker(use_gpu=True)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_have_16_bits_and_no_tf32(kind, accelerator):
    accelerator(torch.device(kind))
    assert has_bf16_units(kind) and has_fp16_units(kind) and not has_tf32(kind)
    words = ["--fine-tune-mode", "full-model", "--dataset", "sst", "--use_gpu"]
    classifier.TASKS["sst"].get_args([*words, "--bf16"])
    with pytest.raises(InputError, match="--tf32: this GPU has no such format"):
        classifier.TASKS["sst"].get_args([*words, "--tf32"])


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_steps_are_recorded_on_cuda_gpus_alone(kind):
    objective = SimpleNamespace(worker=Worker(torch.device(kind)), extensions=[])
    options = FitOptions(epochs=1, lr=0.1, metric="dev")
    made = make_gradients(objective, None, options, print, RECORDERS)
    assert type(made) is Gradients


# -- float64 -----------------------------------------------------------------------------------


@pytest.fixture
def without_float64(monkeypatch):
    """The CPU as a device that has none: a tensor of it is an error."""
    monkeypatch.setattr(devices, "NO_FLOAT64", {"cpu"})
    monkeypatch.setattr(torch.Tensor, "double", lambda self: pytest.fail("float64"))


def test_where_float64_is_missing_sums_are_in_float32():
    kinds = {device.type: widest_float(device) for device in (CPU, CUDA, MPS, XPU)}
    assert kinds == {
        "cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32, "xpu": torch.float32,
    }  # fmt: skip


def test_training_needs_no_float64(tmp_path, without_float64, monkeypatch):
    progress = run(Averager(), tmp_path / "narrow", rows=40)
    monkeypatch.undo()
    expected = run(Averager(), tmp_path / "wide", rows=40)
    assert progress.history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"])


def test_sampling_needs_no_float64_and_never_draws_what_has_no_chance(without_float64):
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).expand(4000, 6).contiguous()
    counts = draw_from_nucleus(probabilities, 1.0, torch.Generator().manual_seed(0)).bincount()
    assert counts[0] == counts[2] == 0 and len(counts) == 5
    torch.testing.assert_close(
        counts[[1, 3, 4]] / 4000, probabilities[0, [1, 3, 4]], atol=0.03, rtol=0
    )
    cut = draw_from_nucleus(probabilities, 0.7, torch.Generator().manual_seed(0))
    assert set(cut.tolist()) == {1, 3}


# -- memory and random state -------------------------------------------------------------------


def test_the_random_state_is_the_cpu_s_and_the_accelerator_s_own(accelerator):
    stub = accelerator(MPS)
    state = random_state(MPS)
    expected = torch.rand(3)
    stub.state = torch.zeros(2, dtype=torch.uint8)
    set_random_state(state, MPS)
    assert torch.equal(torch.rand(3), expected) and stub.state.tolist() == [3, 4]
    set_random_state(state, CPU)  # a run that goes on elsewhere
    assert torch.equal(torch.rand(3), expected)
    set_random_state(random_state(CPU), MPS)
    assert stub.state.tolist() == [3, 4]


def test_memory_that_runs_out_on_mps_is_answered_by_smaller_pieces(tmp_path):
    """Its error is a RuntimeError with these words."""
    said, whole = [], Averager()

    def short_of_memory(logits, batch):
        if len(logits) > 2:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
        return summed_loss(logits, batch)

    run(whole, tmp_path / "whole")
    model = Averager()
    run(model, tmp_path / "pieces", loss_fn=short_of_memory, log=said.append)
    assert "out of memory: going on with 2 rows at a time, same batch size" in said
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(model)[name], expected, atol=1e-5, rtol=1e-4)


def test_other_errors_of_a_step_are_not_taken_for_it(tmp_path):
    def broken(logits, batch):
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        run(Averager(), tmp_path, loss_fn=broken)
    assert is_out_of_memory(torch.OutOfMemoryError()) and not is_out_of_memory(ValueError())


def test_batches_go_there_without_pinned_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("pinned"))
    batch = {"token_ids": torch.ones(2, 3), "sent_ids": ["a", "b"]}
    assert to_device(batch, torch.device("meta"))["token_ids"].device.type == "meta"


def test_a_cpu_s_random_state_is_that_of_its_generator_alone():
    assert torch.equal(random_state(CPU), torch.get_rng_state())
