"""torch.compile in training: the same network in fewer and larger kernels, the same gradients.

One compilation serves batches of all lengths. Mode "reduce-overhead" goes further, on GPUs: it
records the kernels of a step as CUDA graphs, one for each shape of a batch, and replays them, where
starting so many small kernels takes longer than they do. Dropout draws other numbers than without.
"""

import contextlib
import weakref

import torch

from engine.errors import InputError
from engine.parallel import worker_count

CUDA_GRAPHS = "reduce-overhead"
MODES = ("default", CUDA_GRAPHS)
MULTIPLE = 8  # positions to which the batches of graphs are padded, so that shapes are few


def check_compile(args) -> None:
    """Refuse flags that do not go with `--compile`.

    A graph writes its gradients to the same place in every replay, so that those of an earlier part
    of a step would be lost (PyTorch's issue 169545): a step must have one part.
    """
    if args.compile != CUDA_GRAPHS:
        return
    flag = f"--compile {CUDA_GRAPHS}"
    if not args.use_gpu:
        raise InputError(f"{flag}: CPUs have no CUDA graphs: add --use_gpu, or give --compile")
    if args.accumulate > 1 or worker_count() > 1:
        raise InputError(f"{flag}: not with --accumulate or several workers: give --compile alone")


def padding_multiple(mode: str | None) -> int:
    """What the positions of training batches are rounded up to, see `batches.collate`."""
    return MULTIPLE if mode == CUDA_GRAPHS else 1


_last = None  # a weak reference to the model that was compiled last


def compiled(model, mode: str | None):
    """The model, compiled for batches of any shape; mode None leaves it as it is.

    PyTorch takes what it compiled for one model for the next one of its kind too, and does not see
    that hooks differ: so what belongs to another model is forgotten.
    """
    global _last
    if not mode:
        return model
    if _last is None or _last() is not model:
        torch.compiler.reset()
        _last = weakref.ref(model)
    return torch.compile(model, dynamic=True, mode=mode)


@contextlib.contextmanager
def compiler_errors(mode: str | None):
    """Say in one line that this machine cannot compile."""
    try:
        yield
    except RuntimeError as error:
        if not mode or not isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
            raise
        reason = next((line for line in str(error).splitlines() if "rror:" in line), str(error))
        raise InputError(
            f"--compile: {' '.join(reason.split())[:200]}: it needs a C++ compiler and Python's "
            f"headers: install them, or leave --compile out"
        ) from error
