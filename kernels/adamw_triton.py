"""The AdamW kernel for CUDA GPUs: one launch of adamw_triton_kernel.py for all tensors.

The formula's seven operations one by one move 72 bytes an element; the kernel moves 28, which are
all that there are. Two tables tell each program what is its own: the addresses, sent in each step
because gradients are new, and the blocks that the tensors fall into, which stay on the GPU.
Tested in Triton's interpreter and compiled for CUDA on a CPU; on a GPU nothing is measured yet.
"""

import importlib.util
import os
from functools import lru_cache

import torch

from kernels.adamw_rows import packed

BLOCK, WARPS = 1024, 4  # 8 elements a thread in 72 registers: seven programs at a time on an H100


def is_available() -> bool:
    """Whether Triton is installed and can read addresses: compiled a GPU's, interpreted the CPU's.

    It is not imported before the first update.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    installed = importlib.util.find_spec("triton") is not None
    return installed and torch.cuda.is_available() != interpreted


@lru_cache(maxsize=256)
def block_table(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """(programs, 2): which tensor each program works on, and which of its blocks."""
    counts = torch.tensor([-(-size // BLOCK) for size in sizes])
    owners = torch.arange(len(sizes)).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts)[owners]
    numbers = torch.arange(len(owners)) - first
    return torch.stack([owners, numbers], 1).to(device, torch.int32)


def update_all(tensors, step_sizes, *, beta1, beta2, eps, decay) -> None:
    """optimizer.update_each of float32 tensors on one GPU, each in one piece of memory."""
    from kernels.adamw_triton_kernel import adamw_kernel

    device = tensors[0][0].device
    blocks = block_table(tuple(param.numel() for param, *_ in tensors), device)
    rows = bytearray(packed(tensors, step_sizes))
    table = torch.frombuffer(rows, dtype=torch.int64).view(len(tensors), -1)
    aligned = not (table[:, :4] % 16).any()
    hyper = [float(x) for x in (1 - beta1, beta2, 1 - beta2, eps, 1 - decay)]
    with torch.cuda.device_of(tensors[0][0]):
        if device.type == "cuda":  # torch gives the pinned memory to no one else until it is read
            table = table.pin_memory().to(device, non_blocking=True)
        launch = adamw_kernel[(len(blocks),)]
        launch(table, blocks, *hyper, ALIGNED=aligned, BLOCK=BLOCK, num_warps=WARPS)
