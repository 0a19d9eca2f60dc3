"""Which kernel moves which tensors in an AdamW step, if there is one that can."""

import warnings
from collections.abc import Callable
from functools import cache

import torch

from kernels import adamw_cpu, adamw_triton

FEWEST = 2**20  # elements: below them torch's own operations are quick enough
KERNELS = {"cpu": adamw_cpu, "cuda": adamw_triton}


def find_kernel(tensors: list[tuple[torch.Tensor, ...]], plain: Callable) -> Callable | None:
    """A function with the arguments and results of `plain`, or None if plain must do it.

    tensors: (param, grad, exp_avg, exp_avg_sq) of each parameter. A kernel that fails on this
    machine, or finds other numbers than plain does, is reported once and left alone.
    """
    if sum(param.numel() for param, *_ in tensors) < FEWEST:
        return None
    device = tensors[0][0].device
    if not all(_fits(tensor, device) for of_one in tensors for tensor in of_one):
        return None
    return _tried(device, plain)


def _fits(tensor: torch.Tensor, device: torch.device) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and tensor.device == device
        and tensor.is_contiguous()
    )


@cache
def _tried(device: torch.device, plain: Callable) -> Callable | None:
    """The kernel of a kind of device, once it has shown that it does what plain does."""
    kernel = KERNELS.get(device.type)
    if kernel is None or not kernel.is_available():
        return None
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, size, generator=random).abs().to(device) for size in (1, 70, 5000)]
    hyper = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "decay": 0.1}
    found, expected = ([[x.clone() for x in of_one] for of_one in tensors] for _ in range(2))
    try:
        kernel.update_all(found, [0.1, 0.2, 0.3], **hyper)
        plain(expected, [0.1, 0.2, 0.3], **hyper)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    except Exception as error:  # whatever a foreign compiler does: the plain update is there
        what = getattr(error, "stderr", None) or error
        warnings.warn(f"AdamW goes on without its {device.type} kernel: {what}", stacklevel=2)
        return None
    return kernel.update_all
