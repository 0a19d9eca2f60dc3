"""What the machine can do at best: matrix products by shape and precision, and memory traffic.

Measured in the same run as the jobs, so that each of their times is also a share of the limit.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.timing import seconds
from engine.devices import device_of, has_bf16_units, has_tf32, matmul_precision

ROUNDS = 3


def measure(config, use_gpu: bool, least: float = 0.2) -> dict:
    """{"rates": FLOP/s by precision and shape, "bandwidth": bytes/s by kind}.

    config: whose layers' shapes are tried. least: seconds that each of three rounds takes at least.
    """
    device = device_of(use_gpu)
    rates = {
        precision: {
            " × ".join(map(str, shape)): gemm_rate(shape, precision, device, least)
            for shape in shapes(config, use_gpu)
        }
        for precision in precisions(device)
    }
    size = 2**30 if use_gpu else 2**28
    return {"rates": rates, "bandwidth": bandwidth(size, device, least)}


def precisions(device: torch.device) -> list[str]:
    more = {"tf32": has_tf32(device.type), "bfloat16": has_bf16_units(device.type)}
    return ["float32", *(name for name, there in more.items() if there)]


def shapes(config, use_gpu: bool) -> list[tuple[int, int, int]]:
    """(tokens, inputs, outputs) of a layer's products at a small and a large batch, and a cube."""
    d, inner = config.hidden_size, config.intermediate_size
    few, many, edge = (512, 8192, 8192) if use_gpu else (184, 1024, 1024)
    layer = [(tokens, *sizes) for tokens in (few, many) for sizes in ((d, d), (d, inner))]
    return [*layer, (edge, edge, edge)]


def gemm_rate(shape: tuple[int, int, int], precision: str, device, least: float) -> float:
    """FLOP/s of (m, k) by (n, k)ᵀ; shape: (m, k, n)."""
    m, k, n = shape
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.randn(m, k, device=device, dtype=dtype)
    weight = torch.randn(n, k, device=device, dtype=dtype)
    with torch.no_grad(), matmul_precision("high" if precision == "tf32" else "highest"):
        return 2 * m * k * n / fastest(lambda: F.linear(x, weight), least)


def bandwidth(size: int, device, least: float) -> dict[str, float]:
    """Bytes/s of copying so many bytes (both ways counted), and of reading them."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    matrix = source.view(-1, 1024)
    vector = torch.ones(1024, device=device)
    return {
        "copy": 2 * size / fastest(lambda: target.copy_(source), least),
        "read": size / fastest(lambda: matrix @ vector, least),
    }


def fastest(work: Callable[[], object], least: float) -> float:
    """Seconds of one call: the best of three rounds, each of as many calls as `least` takes."""
    once = min(seconds(work) for _ in range(2))
    calls = max(1, round(least / max(once, 1e-7)))
    return min(seconds(lambda: [work() for _ in range(calls)]) / calls for _ in range(ROUNDS))


def best_rate(limits: dict, precision: str) -> float:
    return max(limits["rates"][precision].values())


def best_bandwidth(limits: dict) -> float:
    return max(limits["bandwidth"].values())
