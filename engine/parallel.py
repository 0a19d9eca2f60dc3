"""Data-parallel training: one process a GPU (or a CPU share), started by torchrun.

Every worker holds the whole model and reads its share of each common batch; gradients are averaged
by torch's DistributedDataParallel, on CUDA GPUs over nccl, on CPUs over gloo. Only worker 0 writes
files.
"""

import contextlib
import ctypes
import os
import platform
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist

from engine.children import end_with_launcher
from engine.devices import device_count, device_type
from engine.errors import InputError
from engine.signals import LAUNCHER

GLIBC_KEEPS = {-4: 0, -1: -1}  # M_MMAP_MAX: none; M_TRIM_THRESHOLD: never, see mallopt(3)
GLIBC_RETURNS = {-4: 2**16, -3: 2**22, -1: 2**22}  # those, and M_MMAP_THRESHOLD, in bytes


@dataclass(frozen=True)
class Worker:
    """This process among its peers; by default the only one."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def say(self) -> Callable[[str], None]:
        """What prints a line, on the main worker alone."""
        return print if self.is_main else lambda message: None


def world_size_of_torchrun() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start_worker(use_gpu: bool) -> Worker:
    """Join the group that torchrun describes in the environment, or be alone; pick the device."""
    world_size, local = world_size_of_torchrun(), int(os.environ.get("LOCAL_RANK", 0))
    kind = device_type(use_gpu)
    if use_gpu and device_count(kind) <= local:
        raise InputError(
            f"--use_gpu: {device_count(kind)} {kind.upper()} GPUs are visible, this process needs "
            f"number {local}: leave --use_gpu out, or install a driver and a CUDA build of torch"
        )
    device = torch.device(kind, local) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.accelerator.set_device_index(local)
    else:
        keep_freed_memory()
    if world_size == 1:
        return Worker(device)
    if not dist.is_initialized():
        end_with_launcher(LAUNCHER)
        dist.init_process_group(backends(device))
    return Worker(device, rank=dist.get_rank(), world_size=world_size)


def backends(device: torch.device) -> str:
    """What carries tensors between workers: gloo those of CPUs, so that no GPU is waited for."""
    own = dist.get_default_backend_for_device(device)
    return own if device.type == "cpu" else f"cpu:gloo,{device.type}:{own}"


@contextlib.contextmanager
def joined_worker(use_gpu: bool) -> Iterator[Worker]:
    """The worker of `start_worker`, which leaves the group at the end.

    After an error it stays: the others would fail for want of it, before they said their own.
    """
    yield start_worker(use_gpu)
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(worker: Worker) -> None:
    """Return when every worker has come here: what worker 0 did before is done."""
    if worker.world_size > 1:
        dist.barrier()


def all_reduce(values: list[float], worker: Worker) -> list[float]:
    """Add up each number over all workers, beside their GPUs, so that none is waited for."""
    if worker.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather(value: torch.Tensor, worker: Worker) -> list[torch.Tensor]:
    """The CPU tensor that each worker brings, of one shape, in the order of ranks."""
    if worker.world_size == 1:
        return [value]
    gathered = [torch.empty_like(value) for _ in range(worker.world_size)]
    dist.all_gather(gathered, value)
    return gathered


def broadcast(tensors: Iterable[torch.Tensor], worker: Worker) -> None:
    """Overwrite each worker's tensors with those of worker 0."""
    if worker.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors; glibc only.

    Otherwise large tensors go back to the system when they are freed, and the next ones come page
    by page, each page zeroed: a seventh of the time of a step of GPT-2 on a CPU.
    """
    _set_glibc(GLIBC_KEEPS)


def return_freed_memory() -> None:
    """The opposite, where memory is dear: each large tensor is the system's again when it is freed.

    Kept ones lie between others that are still needed, so that new ones find no room there.
    """
    _set_glibc(GLIBC_RETURNS)


def _set_glibc(parameters: dict[int, int]) -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)


def seed_everything(seed: int = 11711) -> None:
    """Seed Python, NumPy and torch, and ask cuDNN for its deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def seed_worker(seed: int, worker: Worker) -> None:
    """Seed torch, so that dropout differs from worker to worker."""
    torch.manual_seed(seed + worker.rank)
