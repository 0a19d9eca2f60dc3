"""The devices of runs: the CPU, or the accelerator that torch names, and what each can do.

CUDA GPUs can do everything here. Others, Apple's MPS and Intel's XPU, run eagerly, and what they
lack has a fallback or is refused.
"""

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

import torch

NO_FLOAT64 = {"mps", "xpu"}  # none of Apple's GPUs has it, and not each of Intel's
MEGABYTE = 2**20
STATUS = Path("/proc/self/status")
AMPERE = (8, 0)  # compute capability from which on NVIDIA's GPUs have bfloat16 and TF32


def device_type(use_gpu: bool) -> str:
    """The CPU's, or that of the accelerator; where there is none, "cuda", for the error."""
    found = torch.accelerator.current_accelerator(check_available=True) if use_gpu else None
    return found.type if found else "cuda" if use_gpu else "cpu"


def device_of(use_gpu: bool) -> torch.device:
    """Where a program without workers computes."""
    return torch.device(device_type(use_gpu))


def device_count(kind: str) -> int:
    """How many accelerators of this type are visible."""
    return torch.get_device_module(kind).device_count()


def hardware(device: torch.device) -> str:
    """A machine in words: its GPU, or else its CPU."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    cpu = f"{os.cpu_count()} CPU cores ({_cpu_name()}), {torch.get_num_threads()} threads"
    return cpu if device.type == "cpu" else f"{device.type.upper()} of {_cpu_name()}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = []
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# -- numbers -----------------------------------------------------------------------------------


def has_bf16_units(kind: str) -> bool:
    """Whether bfloat16 pays there: not on NVIDIA's GPUs before Ampere, nor on most CPUs."""
    return _cpu_has("amx_bf16", "avx512_bf16") if kind == "cpu" else _is_recent(kind)


def has_fp16_units(kind: str) -> bool:
    """Whether float16 pays there: on GPUs, and on CPUs that multiply matrices in it."""
    return kind != "cpu" or _cpu_has("amx_fp16", "avx512_fp16")


def has_tf32(kind: str) -> bool:
    return kind == "cuda" and _is_recent(kind)


def _is_recent(kind: str) -> bool:
    """Of a GPU that is not there nothing is known against it."""
    if kind != "cuda" or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability() >= AMPERE


def _cpu_has(*units: str) -> bool:
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot say
    return any(known.get(unit) for unit in units)


def widest_float(device: torch.device) -> torch.dtype:
    """The type in which sums are exact enough: float64 wherever there is one."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


@contextlib.contextmanager
def matmul_precision(name: str):
    """How float32 matrices are multiplied on GPUs: "highest", or "high", which takes TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- memory and random state -------------------------------------------------------------------


def peak_mb(device: torch.device) -> float:
    """The most memory so far: of the GPU's tensors, or resident of this process, torch included.

    Linux's ru_maxrss may hold the peak of the process that started this one: VmHWM does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    if STATUS.exists():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024 / MEGABYTE
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def free_cache(device: torch.device) -> None:
    """Give back to the accelerator, or the system, what torch or glibc keeps for next tensors."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def random_state(device: torch.device) -> torch.Tensor:
    """(n,) bytes: the state of the CPU's generator, then that of the accelerator's own."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Put back what `random_state` gave, as much of it as this device has."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if len(state) > size and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[size:], device)
