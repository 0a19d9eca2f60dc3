"""The one training loop, and the seam through which a technique changes a run.

    for each epoch, for each common batch:   loss = Σ loss_fn(logits, batch) / number of targets
                                             (+ penalties of extensions), one optimizer step
    after each epoch: evaluate, keep the best, save all that an exact resume needs

The loss is a sum over targets, divided by their number in the whole common batch: so accumulated,
micro-batched and data-parallel steps give the gradient of the one large batch, uneven parts too.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from engine.batches import count_targets, forward_tokens, split_batch, to_device
from engine.checkpoint import RunFolder, load_checkpoint, load_trainable_state, trainable_state
from engine.errors import InputError
from engine.extension import Extension
from engine.fast.adamw import FusedAdamW
from engine.fast.compiling import CUDA_GRAPHS, compiled, compiler_errors
from engine.parallel import Worker, copy_from_main, gather, matmul_precision, sum_over_workers

STEPS_UNREAD = {"cuda": 32}  # steps between looks at the losses; elsewhere each is looked at


@dataclass(frozen=True)
class FitOptions:
    """How to train; the defaults are the course's: constant rate, no clipping, fp32."""

    epochs: int
    lr: float
    metric: str  # the key in evaluate's dict that decides the best epoch
    maximize: bool = True
    weight_decay: float = 0.0
    warmup: float = 0.0  # share of all steps in which the rate rises linearly from 0
    schedule: str = "constant"  # or "linear" or "cosine", falling to 0
    clip: float = 0.0  # largest norm of the gradient; 0 leaves it alone
    accumulate: int = 1  # common batches to one step
    bf16: bool = False  # bfloat16 autocast
    tf32: bool = False  # what stays in float32 multiplies matrices in TF32, on GPUs
    compile: str | None = None  # torch.compile's mode, for training alone
    patience: int = 0  # epochs without a better one before stopping early; 0 never
    resume: bool = False
    save_minutes: float = 10.0  # between saves within an epoch


@dataclass
class Progress:
    """Where a run stands; with the weights, the optimizer and the random state, all of it."""

    epoch: int = 0
    step: int = 0  # steps done in this epoch
    loss: float = 0.0  # sums over this epoch so far
    targets: float = 0.0
    correct: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0  # epochs since the best one
    finished: bool = False
    history: list[dict] = field(default_factory=list)


def fit(
    model: nn.Module,
    loader,
    *,
    loss_fn: Callable,
    evaluate: Callable,
    options: FitOptions,
    folder: RunFolder,
    worker: Worker,
    extensions: Iterable[Extension] = (),
    forward: Callable = forward_tokens,
    log: Callable = print,
) -> Progress:
    """Train; afterwards the model holds the weights of the best epoch.

    loss_fn(logits, batch) is the loss summed over the batch's targets (labels that are not
    IGNORED_LABEL); evaluate(model) gives a dict of dev figures. The extensions were applied to the
    model before. A loss that is not finite stops the run.
    """
    run = Trainer(model, loader, loss_fn, options, folder, worker, list(extensions), forward, log)
    folder.start(options.resume)
    if options.resume:
        run.restore()
    elif folder.last.exists():
        run.log("a run with these flags was here before and is done anew; --resume would go on")
    if not run.progress.finished and hasattr(run.optimizer, "init_state"):
        run.optimizer.init_state()  # now: memory that runs out later is answered by smaller pieces
    while not run.progress.finished:
        run.train_epoch()
        with run.evaluated():
            run.check_weights()
            run.judge(evaluate(model))
        run.finish_epoch()
    if worker.is_main:
        best = load_checkpoint(folder.best, folder.task)
        load_trainable_state(model, best["model"], folder.best)
    copy_from_main(trainable_state(model).values(), worker)
    return run.progress


class Trainer:
    """The state of one call of `fit`."""

    def __init__(self, model, loader, loss_fn, options, folder, worker, extensions, forward, log):
        self.model, self.loader, self.loss_fn, self.options = model, loader, loss_fn, options
        self.folder, self.worker, self.extensions = folder, worker, extensions
        self.forward = forward
        self.log = log if worker.is_main else lambda message: None
        self.progress = Progress()
        self.optimizer = make_optimizer(model, options, extensions)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parallel_model = model
        if worker.count > 1:
            self.parallel_model = DistributedDataParallel(model)
        self.parallel_model = compiled(self.parallel_model, options.compile)
        self.steps_per_epoch = -(-len(loader) // options.accumulate)
        self.micro_batch = None  # rows that fit into memory at once; None: a whole batch
        self.saved_at = time.monotonic()
        self.unread: list[tuple[int, list[str], torch.Tensor]] = []  # step, ids, [loss, correct]

    # -- training -------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """One pass over the data, or the rest of one that was interrupted."""
        progress, started = self.progress, time.monotonic()
        self.model.train()
        self.loader.batch_sampler.set_epoch(progress.epoch)
        groups = _grouped(self.loader, self.options.accumulate)
        remaining = itertools.islice(groups, progress.step, None)
        bar = tqdm(
            remaining,
            desc=f"train-{progress.epoch}",
            initial=progress.step,
            total=self.steps_per_epoch,
            leave=False,
            disable=None if self.worker.is_main else True,
        )
        for group in bar:
            self._set_rates()
            with matmul_precision("high") if self.options.tf32 else contextlib.nullcontext():
                self._accumulate_gradients(group)
            self._move()
            progress.step += 1
            within = progress.step < self.steps_per_epoch
            if within and time.monotonic() - self.saved_at >= 60 * self.options.save_minutes:
                self._look_at_losses()
                self.save()
        self._look_at_losses()
        self.seconds = time.monotonic() - started

    def _set_rates(self) -> None:
        progress, total = self.progress, self.steps_per_epoch * self.options.epochs
        step = progress.epoch * self.steps_per_epoch + progress.step
        factor = rate_factor(step, total, self.options.warmup, self.options.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _accumulate_gradients(self, group: list[dict]) -> None:
        """The gradient of the mean loss over all targets of the group, on all workers.

        If a GPU's memory does not suffice, begin again with half the rows at a time.
        """
        local = float(sum(count_targets(batch) for batch in group))
        [targets] = sum_over_workers([local], self.worker)
        while True:
            try:
                self.optimizer.zero_grad(set_to_none=True)
                with compiler_errors(self.options.compile):
                    figures = self._backward(group, targets)
                break
            except torch.OutOfMemoryError as error:
                self._halve_micro_batch(group, error)
        self.progress.targets += targets
        self.unread.append((self.progress.step, _ids(group), figures))
        if len(self.unread) >= STEPS_UNREAD.get(self.worker.device.type, 1):
            self._look_at_losses()

    def _backward(self, group: list[dict], targets: float) -> torch.Tensor:
        """Add up gradients piece by piece; returns this worker's summed loss and right answers."""
        pieces = [p for batch in group for p in split_batch(batch, self.micro_batch)]
        figures = []
        for i, piece in enumerate(pieces):
            there = to_device(piece, self.worker.device)
            more = self.worker.count > 1 and i + 1 < len(pieces)
            synchronized = self.parallel_model.no_sync() if more else contextlib.nullcontext()
            with synchronized:
                with self._autocast():
                    logits = self.forward(self.parallel_model, there)
                    loss = self.loss_fn(logits, there)
                    objective = loss / targets
                    for extension in self.extensions:
                        share = count_targets(piece) / targets
                        objective = objective + share * extension.penalty(self.model, there, logits)
                for extension in self.extensions:
                    extension.before_backward(self.model, there)
                # DistributedDataParallel averages over workers; the sum is wanted
                (objective * self.worker.count).backward()
            figures.append(torch.stack([loss.detach().double(), count_correct(logits, there)]))
        return torch.stack(figures).sum(dim=0)

    def _look_at_losses(self) -> None:
        """Add the figures of the steps since the last look to the epoch's.

        On a GPU many steps pass between two looks: each waits for all that was queued there.
        """
        if not self.unread:
            return
        flat = torch.cat([figures for *_, figures in self.unread]).tolist()
        flat = sum_over_workers(flat, self.worker)
        for (step, ids, _), loss, correct in zip(self.unread, flat[::2], flat[1::2], strict=True):
            if not math.isfinite(loss):
                self._diverged(f"the loss is {loss}", step, ids)
            self.progress.loss += loss
            self.progress.correct += correct
        self.unread.clear()

    def _autocast(self):
        if not self.options.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.worker.device.type, dtype=torch.bfloat16)

    def _halve_micro_batch(self, group: list[dict], error) -> None:
        rows = self.micro_batch or max(len(batch["sent_ids"]) for batch in group)
        if rows <= 1 or self.worker.count > 1 or self.options.compile == CUDA_GRAPHS:
            raise InputError(
                f"out of memory with {rows} rows at a time: give a smaller --batch_size or "
                f"--model_size"
            ) from error
        self.micro_batch = -(-rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log(f"out of memory: going on with {self.micro_batch} rows at a time, same batch size")

    def _move(self) -> None:
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        for extension in self.extensions:
            extension.after_step(self.model)

    def _diverged(self, what: str, step: int, ids: list[str]) -> None:
        rows = f"; batch ids: {', '.join(ids)}" if ids else ""
        kept = self.progress.best_epoch is not None
        raise InputError(
            f"epoch {self.progress.epoch}, step {step}: {what}{rows}; the run stops"
            f"{f', {self.folder.path} keeps the best epoch before' if kept else ''}: give a "
            f"smaller --lr or --clip 1{', or look at these rows' if ids else ''}"
        )

    # -- between epochs -------------------------------------------------------------------------

    def evaluated(self) -> contextlib.ExitStack:
        with contextlib.ExitStack() as stack:
            for extension in self.extensions:
                stack.enter_context(extension.evaluated(self.model))
            return stack.pop_all()

    def check_weights(self) -> None:
        """Stop a run whose weights cannot be evaluated."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters() if p.requires_grad):
            self._diverged("a weight is not finite", self.progress.step, [])

    def judge(self, metrics: dict) -> None:
        """Record the figures, and keep the weights if they are the best so far."""
        progress, options = self.progress, self.options
        record = {
            "epoch": progress.epoch,
            "train_loss": progress.loss / progress.targets,
            "train_acc": progress.correct / progress.targets,
            **metrics,
            "seconds": round(self.seconds, 3),
        }
        progress.history.append(record)
        shown = [
            f"{key.replace('_', ' ')} :: {record[key]:.3f}" for key in record if key != "epoch"
        ]
        self.log(f"Epoch {progress.epoch}: {', '.join(shown)}")
        for name, figure in metrics.items():
            if not math.isfinite(figure):
                self._diverged(f"{name} is {figure}", progress.step, [])
        value = metrics[options.metric]
        sign = 1 if options.maximize else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.best_epoch, progress.stale = value, progress.epoch, 0
            self.folder.save_best(self.model, record)
        else:
            progress.stale += 1

    def finish_epoch(self) -> None:
        """Go on to the next epoch, and save everything."""
        progress, options = self.progress, self.options
        progress.epoch += 1
        progress.step, progress.loss, progress.targets, progress.correct = 0, 0.0, 0.0, 0.0
        stop = 0 < options.patience <= progress.stale
        progress.finished = stop or progress.epoch >= options.epochs
        self.folder.write_metrics(progress.history)
        if progress.finished:
            self.folder.draw_curves(progress.history, options.metric)
        if self.worker.is_main:
            for extension in self.extensions:
                extension.after_epoch(progress.history[-1], self.folder)
        self.save()

    def save(self) -> None:
        """Everything that `restore` needs; of a finished run, only how it went."""
        random = torch.cat([torch.get_rng_state(), _cuda_state(self.worker.device)])
        tree = {
            "progress": asdict(self.progress),
            "data": self.loader.dataset.fingerprint(),
            "random": gather(random, self.worker),
        }
        if not self.progress.finished and self.worker.is_main:
            tree["model"] = trainable_state(self.model)
            tree["optimizer"] = self.optimizer.state_dict()
        self.folder.save_last(tree)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        tree = load_checkpoint(self.folder.last, self.folder.task)
        if tree["data"] != self.loader.dataset.fingerprint():
            raise InputError(f"{self.folder.last}: the training data has changed since: train anew")
        if len(tree["random"]) != self.worker.count:
            raise InputError(
                f"{self.folder.last}: saved by {len(tree['random'])} workers, these are "
                f"{self.worker.count}: start as many"
            )
        self.progress = Progress(**tree["progress"])
        if self.progress.finished:
            self.log("this run is finished: its best epoch is taken as it is")
            return
        load_trainable_state(self.model, tree["model"], self.folder.last)
        self.optimizer.load_state_dict(tree["optimizer"])
        random = tree["random"][self.worker.rank]
        size = len(torch.get_rng_state())
        torch.set_rng_state(random[:size])
        if len(random) > size and self.worker.device.type == "cuda":
            torch.cuda.set_rng_state(random[size:], self.worker.device)
        self.log(f"resumed at epoch {self.progress.epoch}, step {self.progress.step}")


def make_optimizer(model, options: FitOptions, extensions: list[Extension]):
    """The optimizer that an extension brings, else AdamW over all trainable parameters."""
    brought = [e.make_optimizer(model, options.lr, options.weight_decay) for e in extensions]
    brought = [optimizer for optimizer in brought if optimizer is not None]
    if len(brought) > 1:
        raise InputError(f"{len(brought)} extensions bring an optimizer: choose one of them")
    if brought:
        return brought[0]
    trainable = [p for p in model.parameters() if p.requires_grad]
    return FusedAdamW(trainable, lr=options.lr, weight_decay=options.weight_decay)


def rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by at a step (from 0) out of `total`."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    done = (step - rising) / max(total - rising, 1)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def count_correct(logits, batch: dict) -> torch.Tensor:
    """Targets whose likeliest prediction is right: logits (…, classes), labels (…)."""
    return (logits.argmax(dim=-1) == batch["labels"]).sum().double()


def _ids(group: list[dict]) -> list[str]:
    return [sent_id for batch in group for sent_id in batch["sent_ids"]]


def _grouped(batches: Iterable[dict], size: int):
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _cuda_state(device) -> torch.Tensor:
    if device.type != "cuda":
        return torch.empty(0, dtype=torch.uint8)
    return torch.cuda.get_rng_state(device)
