"""What every side of a job has in common: its own process, its counts, its answer to a check.

A peer lives in a process of its own (`timing.Alone`). It has one method a kind of job, which gets
everything ready and returns the work to be timed; hooks of torch's own count what was done, so
that a peer that does less than the others is seen.
"""

import contextlib
import gc
import io
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.jobs import Job, Settings, Workload
from benchmarks.step_times import Recordings, step_times, traced
from benchmarks.timing import forget_peak, seconds
from engine.batches import TokenDataset, collate, to_device
from engine.devices import peak_mb
from engine.records import Record
from models.gpt2 import GPT2Model

COMPARED = 8  # rows of the batch on which logits are compared
TEMPERATURE, TOP_P = 1.2, 0.9
FULL_RATE, HEAD_RATE = 1e-5, 1e-3
WARM = 50  # batches on a GPU
SHARE = 0.1  # of a GPU's memory: what a waiting peer may keep for its next turn


class Meter:
    """Counts the rows, and positions with padding, that a network reads, and optimizer steps."""

    def __init__(self, network: torch.nn.Module | None, training: bool):
        """training: whether reading in train mode is what counts, or in eval mode."""
        self.training, self.counts = training, {}
        self.handles = [register_optimizer_step_post_hook(self._step)]
        if network is not None:
            self.handles.append(network.register_forward_pre_hook(self._read, with_kwargs=True))

    def reset(self) -> None:
        self.counts = {"rows": 0, "positions": 0, "steps": 0}

    def _read(self, network, inputs, named) -> None:
        x = inputs[0] if inputs else named["input_ids"]
        if network.training == self.training:
            self.read(x)

    def read(self, x) -> None:
        """Count these tokens (b, t), or the rows of these features."""
        self.counts["rows"] += x.shape[0]
        self.counts["positions"] += 0 if x.is_floating_point() else x.numel()

    def _step(self, *_) -> None:
        self.counts["steps"] += 1

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class CountedRows:
    """A batch sampler whose rows a meter counts."""

    def __init__(self, sampler, meter):
        self.sampler, self.meter = sampler, meter

    def __len__(self):
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self):
        for rows in self.sampler:
            self.meter.counts["rows"] += len(rows)
            yield rows


class Peer:
    """One side of a job. Subclasses build a model and know how to do each kind of job.

    warm_ups: turns on a GPU before those that are timed.
    """

    warm_ups = 1

    def __init__(self, job: Job, settings: Settings):
        self.job, self.settings, self.device = job, settings, settings.device
        self.load, self.recordings = Workload(job, settings), Recordings()
        self.scratch = tempfile.TemporaryDirectory(prefix="bench-core-")
        torch.manual_seed(settings.seed)
        if job.kind == "step":
            self.model = _with_gradients(self.load.config).to(self.device)
            self.optimizer = self.make_optimizer(self.model.parameters())
        else:
            self.model = self.build().to(self.device)
        self.meter = Meter(self.counted(), training=job.kind not in ("evaluate", "decode"))

    @classmethod
    def missing(cls, job: Job) -> str | None:
        """Why this peer cannot do the job here, if so."""
        return None

    @classmethod
    def precision(cls, job: Job, settings: Settings) -> str:
        """Of the matrix products."""
        return "float32"

    def build(self) -> torch.nn.Module:
        raise NotImplementedError

    def counted(self) -> torch.nn.Module | None:
        """What all rows go through: the network; of a frozen one its new linear layer; in decoding
        the last norm, once for each token."""
        if self.job.kind == "step":
            return None
        if self.job.kind == "train_head":
            return self.output_layer()
        return self.final_norm() if self.job.kind == "decode" else self.backbone()

    def backbone(self) -> torch.nn.Module:
        return self.model.gpt

    def final_norm(self) -> torch.nn.Module:
        return self.model.gpt.final_layer_norm

    def output_layer(self) -> torch.nn.Module:
        raise NotImplementedError

    def make_optimizer(self, parameters) -> torch.optim.Optimizer:
        raise NotImplementedError

    def step(self, rows) -> Callable:
        return lambda: [self.optimizer.step() for _ in range(self.load.steps)]

    @torch.no_grad()
    def answer(self) -> np.ndarray:
        """What peers must agree on: logits of a batch, or some weights after a step.

        The peak of memory counts from here.
        """
        self.meter.reset()
        if self.job.kind == "step":
            self.optimizer.step()
            answer = torch.cat([p.flatten()[:64] for p in self.model.parameters()])
        else:
            answer = self._logits_of_first_rows()
        answer = answer.float().cpu().numpy()
        forget_peak(self.device)
        return answer

    def _logits_of_first_rows(self) -> torch.Tensor:
        tokens = self.load.tokens(self.load.rows[:COMPARED])
        dataset = TokenDataset(tokens, [str(i) for i in range(len(tokens))])
        batch = to_device(collate([dataset[i] for i in range(len(dataset))]), self.device)
        self.model.eval()
        return self.logits(batch)

    def logits(self, batch: dict) -> torch.Tensor:
        """(b, classes) at the last real token, dropout off."""
        logits = self.model(batch["token_ids"], batch["attention_mask"])
        return at_last_token(logits, batch) if logits.dim() == 3 else logits

    def run(self, warm: bool = False) -> dict:
        """Do the job, or a part of it to warm up: {"seconds": …, "rows": …, "steps": …, …}."""
        before = self.recordings.count, self.recordings.seconds
        elapsed = self._turn(self._first_rows() if warm else self.load.rows, seconds)
        parts = self.load.steps if self.job.kind == "step" else 1
        return {
            "seconds": elapsed / parts,
            **self.meter.counts,
            "recordings": self.recordings.count - before[0],
            "recording_seconds": self.recordings.seconds - before[1],
        }

    def warm_up(self) -> dict[str, float]:
        """Get ready to be timed: the seconds that this takes, and those of recording."""
        count = self.warm_ups if self.settings.use_gpu else 1
        turns = [self.run(warm=True) for _ in range(count)]
        kept = ("seconds", "recordings", "recording_seconds")
        return {key: sum(turn[key] for turn in turns) for key in kept}

    def _turn(self, rows: list[Record], measure: Callable):
        """What measure(work) returns, of doing the job with these rows."""
        with self.recordings.watched(), contextlib.redirect_stdout(io.StringIO()):
            work = getattr(self, self.job.kind)(rows)
            self.meter.reset()
            found = measure(work)
        del work
        self._leave_memory_to_others()
        return found

    def profile(self) -> dict[str, float]:
        """Where the time of a training step goes: two more turns."""
        return self.step_times() | self._turn(
            self.load.rows, lambda work: traced(work, self.load.steps, self.device)
        )

    def step_times(self) -> dict[str, float]:
        return self._turn(self.load.rows, lambda work: step_times(work, self.device))

    def _first_rows(self) -> list[Record]:
        """One batch; on a GPU more, so that most shapes were there once."""
        if self.settings.use_gpu:
            return self.load.rows[: WARM * self.job.batch_size]
        return self.load.rows[: 1 if self.job.kind == "decode" else self.job.batch_size]

    def _leave_memory_to_others(self) -> None:
        if self.job.kind != "step":
            self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.settings.use_gpu:
            total = torch.cuda.get_device_properties(self.device).total_memory
            if torch.cuda.memory_reserved(self.device) > SHARE * total:
                torch.cuda.empty_cache()

    def peak_mb(self) -> float:
        return peak_mb(self.device)


def _with_gradients(config) -> GPT2Model:
    """A GPT-2 whose gradients are far from 0, where an ε in another place would show."""
    model = GPT2Model(config)
    for parameter in model.parameters():
        parameter.grad = torch.where(torch.rand_like(parameter) < 0.5, -1.0, 1.0)
    return model


def at_last_token(logits, batch: dict) -> torch.Tensor:
    """(b, t, v) -> (b, v), at each row's last real token."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, batch["attention_mask"].sum(dim=1) - 1]
