"""The AdamW kernel for CPUs: adamw.c, compiled on first use by the machine's C compiler.

Torch's operations read and write a block six times; the kernel does it once, in each of torch's
threads. It takes 50 ms to compile, and nothing is left on disk.
"""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from kernels.adamw_rows import packed

SOURCE = Path(__file__).with_name("adamw.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")


def is_available() -> bool:
    """Whether there is a C compiler that takes FLAGS, and addresses are those of a row."""
    return compiler() is not None and struct.calcsize("P") == 8 and sys.platform != "win32"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


@cache
def library() -> ctypes.CDLL:
    """The compiled kernel; OSError or CalledProcessError if it cannot be made."""
    with tempfile.TemporaryDirectory(prefix="adamw-") as folder:
        file = Path(folder) / "adamw.so"
        command = [compiler(), *FLAGS, "-o", str(file), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        loaded = ctypes.CDLL(str(file))
    loaded.adamw_update.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, *[ctypes.c_double] * 4]
    loaded.adamw_update.restype = None
    return loaded


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "adamw")


def update_all(tensors, step_sizes, *, beta1, beta2, eps, decay) -> None:
    """optimizer.update_each of float32 tensors on the CPU, each in one piece of memory."""
    table, parts = packed(tensors, step_sizes), torch.get_num_threads()
    update = library().adamw_update

    def do(part: int) -> None:
        update(table, len(tensors), part, parts, beta1, beta2, eps, decay)

    others = [_threads().submit(do, part) for part in range(1, parts)]
    do(0)
    for other in others:
        other.result()
