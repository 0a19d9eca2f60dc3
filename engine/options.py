"""What `fit` is told, the learning rate's schedule, and where a run stands."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FitOptions:
    """How to train; the defaults are the course's: constant rate, no clipping, fp32."""

    epochs: int
    lr: float
    metric: str  # the key in evaluate's dict that decides the best epoch
    maximize: bool = True
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    weight_decay: float = 0.0  # of matrices and embeddings; vectors have none
    warmup: float = 0.0  # share of all steps in which the rate rises linearly from 0
    schedule: str = "constant"  # or "linear" or "cosine", falling to 0
    clip: float = 0.0  # largest norm of the gradient; 0 leaves it alone
    accumulate: int = 1  # common batches to one step
    bf16: bool = False  # bfloat16 autocast
    fp16: bool = False  # float16 autocast, with a loss scale
    tf32: bool = False  # what stays in float32 multiplies matrices in TF32, on GPUs
    compile: str | None = None  # torch.compile's mode, for training alone
    one_shape: bool = False  # all batches have one shape: compiled steps may be recorded, too
    eager: bool = False  # on GPUs, one launch a kernel instead of recorded steps
    patience: int = 0  # epochs without a better one before stopping early; 0 never
    shard: bool = False  # a worker holds its share of weights, gradients and moments
    resume: bool = False
    save_minutes: float = 10.0  # between saves of all that a resume needs; 0: after each step

    @property
    def any_length(self) -> bool:
        """Whether a step is the same in a run of more epochs, so that one may go on to these."""
        return self.schedule == "constant" and not self.warmup


@dataclass
class Progress:
    """Where a run stands; with the weights, the optimizer and the random state, all of it."""

    epoch: int = 0
    step: int = 0  # steps done in this epoch
    loss: float = 0.0  # sums over this epoch so far
    targets: float = 0.0
    correct: float = 0.0
    skipped: int = 0  # steps of this epoch whose gradient overflowed float16
    best: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0  # epochs since the best one
    finished: bool = False
    history: list[dict] = field(default_factory=list)


def lr_multiplier(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by at a step (from 0) out of `total`."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    done = (step - rising) / max(total - rising, 1)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
