"""torch.compile in training: the same network in fewer and larger kernels, the same gradients.

One compilation serves batches of all lengths, or is for the one shape that all of them have.
Dropout draws other numbers than without.
"""

import contextlib
import weakref

import torch

from engine.errors import InputError

_last = None  # a weak reference to the model that was compiled last


def compiled(model, mode: str | None, *, one_shape: bool = False):
    """The model, compiled for batches of any shape or of one; mode None leaves it as it is.

    PyTorch takes what it compiled for one model for the next one of its kind too, and does not see
    that hooks differ: so what belongs to another model is forgotten.
    """
    global _last
    if not mode:
        return model
    if _last is None or _last() is not model:
        torch.compiler.reset()
        _last = weakref.ref(model)
    return torch.compile(model, dynamic=not one_shape, mode=mode)


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
