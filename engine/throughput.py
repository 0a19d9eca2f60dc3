"""How fast training reads tokens, and what share of a GPU's peak that is."""

import time

import torch

from config import GPT2Config
from engine.parallel import Worker

# Dense bf16 FLOP/s of a GPU, from NVIDIA's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


class Meter:
    """Counts the tokens of the batches that training reads, and the seconds that this takes."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.tokens, self.started = 0, None

    def note(self, batch: dict) -> None:
        """To be called with each batch before its step."""
        if self.started is None:
            self.started = time.monotonic()
        self.tokens += batch["token_ids"].numel() * self.worker.world_size

    def tokens_per_second(self) -> float:
        """Since the last call."""
        elapsed = time.monotonic() - (self.started or 0.0)
        rate, self.tokens, self.started = self.tokens / elapsed, 0, None
        return rate


def flops_per_token(config: GPT2Config, parameters: int, t: int) -> int:
    """Of training: 6 N + 12 l d t, Chowdhery et al. 2022 ("PaLM"), appendix B."""
    return 6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * t


def count_parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def utilization(model, tokens_per_second: float, t: int, worker: Worker) -> dict:
    """The share of the GPUs' peak that training used (MFU); {} where the peak is not known."""
    name = torch.cuda.get_device_name(worker.device) if worker.device.type == "cuda" else ""
    peaks = [peak for key, peak in PEAKS.items() if key in name]
    if not peaks:
        return {}
    flops = flops_per_token(model.gpt.config, count_parameters(model), t) * tokens_per_second
    return {"mfu": flops / (peaks[0] * worker.world_size)}
