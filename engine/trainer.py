"""The state of a run of `fit`: its steps, and what happens between two epochs."""

import contextlib
import itertools
import math
import time

import torch
from torch import nn

from engine.ahead import groups_of
from engine.compiling import compiled
from engine.errors import InputError
from engine.gradients import Objective
from engine.mixed_precision import LossScaler
from engine.optimizers import make_optimizer
from engine.options import Progress, lr_multiplier
from engine.parallel import all_reduce, gather
from engine.progress_bar import EpochBar
from engine.recorded_gradients import make_gradients
from engine.recorder import RECORDERS
from engine.resuming import load_state, save_state
from engine.run_report import epoch_line
from engine.sharding import distributed, local
from engine.signals import Asked

STEPS_UNREAD = {"cpu": 1}  # steps between looks at the losses
STEPS_UNREAD_ELSEWHERE = 32
FORWARDS = 16  # of an evaluation, from one time to the next that workers ask each other


class Trainer:
    """The state of one call of `fit`."""

    def __init__(
        self, model, loader, loss_fn, options, folder, worker, extensions, forward, log,
        recorders=RECORDERS, on_epoch=None,
    ):  # fmt: skip
        self.model, self.loader, self.options = model, loader, options
        self.folder, self.worker, self.extensions = folder, worker, extensions
        self.log = log if worker.is_main else lambda message: None
        say, told = self.log, on_epoch if worker.is_main else None
        self.on_epoch = told or (lambda record: say(epoch_line(record)))
        self.progress = Progress()
        network = distributed(model, worker, shard=options.shard)  # may replace the parameters
        self.optimizer = make_optimizer(model, options, extensions)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        network = compiled(network, options.compile, one_shape=options.one_shape)
        self.scaler = LossScaler(worker.device, enabled=options.fp16)
        objective = Objective(
            model, network, forward, loss_fn, extensions, worker, options, self.scaler
        )
        self.gradients = make_gradients(objective, self.optimizer, options, self.log, recorders)
        self.saved_at = time.monotonic()
        self.asked = Asked()  # what signals want; `fit` defers them
        self.unread: list[tuple[int, list[str], torch.Tensor]] = []  # step, ids, [loss, correct]
        self.mean_loss: float | None = None  # of the epoch, when the losses were last looked at

    # -- training -------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.loader) // self.options.accumulate)

    def train_epoch(self) -> None:
        """One pass over the data, or the rest of one that was interrupted."""
        progress, started = self.progress, time.monotonic()
        self.model.train()
        self.loader.batch_sampler.set_epoch(progress.epoch)
        first = progress.step
        name = f"epoch {progress.epoch}"
        with groups_of(self.loader, self.options.accumulate, first, self.worker.device) as groups:
            bar = EpochBar(groups, name, first=first, total=self.steps_per_epoch)
            for group in bar:
                if progress.step > first:
                    asked = self._asked_of_any()
                    if asked.save:
                        self.save()
                    asked.check()
                self.step(group)
                rate = self.optimizer.param_groups[0]["lr"]
                bar.note(group, self.worker.world_size, self.mean_loss, rate)
        self._asked_of_any().check()
        self.look_at_losses()
        self.seconds = time.monotonic() - started

    def _asked_of_any(self) -> Asked:
        """What signals and the clock ask of this worker; of several, what they ask of any."""
        minutes = (time.monotonic() - self.saved_at) / 60
        stop, save = self.asked.stop, self.asked.save or minutes >= self.options.save_minutes
        if self.worker.world_size > 1:
            asked = torch.tensor([stop or 0, save])
            stop, save = torch.stack(gather(asked, self.worker)).amax(dim=0).tolist()
        return Asked(stop or None, bool(save))

    def step(self, group: list[dict]) -> None:
        """One optimizer step, on the batches of a group."""
        self._set_rates()
        targets, figures = self.gradients.of(group)
        self.progress.targets += targets
        self.unread.append((self.progress.step, _ids(group), figures))
        if len(self.unread) >= STEPS_UNREAD.get(self.worker.device.type, STEPS_UNREAD_ELSEWHERE):
            self.look_at_losses()
        self.scaler.unscale_(self.optimizer)
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.trained, self.options.clip)
        if self.scaler.try_step(self.optimizer):
            for extension in self.extensions:
                extension.after_step(self.model)
            self.gradients.after_step()
        else:
            self._note_overflow(group)
        self.progress.step += 1

    def _note_overflow(self, group: list[dict]) -> None:
        self.progress.skipped += 1
        if self.scaler.is_exhausted:
            self.look_at_losses()
            what = "gradients overflow float16 at every loss scale"
            self._diverged(what, self.progress.step, _ids(group))

    def _set_rates(self) -> None:
        progress, total = self.progress, self.steps_per_epoch * self.options.epochs
        step = progress.epoch * self.steps_per_epoch + progress.step
        multiplier = lr_multiplier(step, total, self.options.warmup, self.options.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * multiplier

    def look_at_losses(self) -> None:
        """Add the figures of the steps since the last look to the epoch's.

        On a GPU many steps pass between two looks: each waits for all that was queued there.
        """
        if not self.unread:
            return
        flat = torch.cat([figures for *_, figures in self.unread]).tolist()
        flat = all_reduce(flat, self.worker)
        for (step, ids, _), loss, correct in zip(self.unread, flat[::2], flat[1::2], strict=True):
            if not math.isfinite(loss):
                self._diverged(f"the loss is {loss}", step, ids)
            self.progress.loss += loss
            self.progress.correct += correct
        self.unread.clear()
        self.mean_loss = self.progress.loss / self.progress.targets

    def _diverged(self, what: str, step: int, ids: list[str]) -> None:
        rows = f"; batch ids: {', '.join(ids)}" if ids else ""
        kept = self.progress.best_epoch is not None and self.folder.newest_best()
        raise InputError(
            f"epoch {self.progress.epoch}, step {step}: {what}{rows}; the run stops"
            f"{f', {kept} keeps the best epoch before' if kept else ''}: give a "
            f"smaller --lr or --clip 1{', or leave --fp16 out' * self.options.fp16}"
            f"{', or look at these rows' if ids else ''}"
        )

    # -- between epochs -------------------------------------------------------------------------

    def evaluated(self) -> contextlib.ExitStack:
        """The context of an evaluation, which a signal ends before its next batch."""
        forwards = itertools.cycle(range(FORWARDS if self.worker.world_size > 1 else 1))

        def look(*_) -> None:
            if next(forwards) == 0:
                self._asked_of_any().check()

        with contextlib.ExitStack() as stack:
            stack.callback(self.model.register_forward_pre_hook(look).remove)
            for extension in self.extensions:
                stack.enter_context(extension.evaluated(self.model))
            return stack.pop_all()

    def check_weights(self) -> None:
        """Stop a run whose weights cannot be evaluated."""
        weights = [local(p) for p in self.model.parameters() if p.requires_grad]
        broken = float(not all(bool(weight.isfinite().all()) for weight in weights))
        if any(all_reduce([broken], self.worker)):
            self._diverged("a weight is not finite", self.progress.step, [])

    def judge(self, metrics: dict) -> None:
        """Record the figures, and keep the weights if they are the best so far."""
        progress, options = self.progress, self.options
        record = {
            "epoch": progress.epoch,
            "train_loss": progress.loss / progress.targets,
            "train_acc": progress.correct / progress.targets,
            **metrics,
            **({"skipped_steps": progress.skipped} if options.fp16 else {}),
            "seconds": round(self.seconds, 3),
        }
        progress.history.append(record)
        self.on_epoch(record)
        for name, figure in metrics.items():
            if not math.isfinite(figure):
                self._diverged(f"{name} is {figure}", progress.step, [])
        value = metrics[options.metric]
        sign = 1 if options.maximize else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.best_epoch = value, progress.epoch
            progress.epochs_without_improvement = 0
            self.folder.save_best(self.model, record)
        else:
            progress.epochs_without_improvement += 1

    def finish_epoch(self) -> None:
        """Go on to the next epoch; save everything if it is time, or was the last one."""
        progress, options = self.progress, self.options
        progress.epoch += 1
        progress.step, progress.loss, progress.targets, progress.correct = 0, 0.0, 0.0, 0.0
        progress.skipped = 0
        progress.finished = self.is_over(progress)
        self.folder.write_metrics(progress.history)
        self.folder.write_resources(self.worker.device)
        if progress.finished:
            self.folder.draw_curves(progress.history, options.metric, progress.best_epoch)
        if self.worker.is_main:
            for extension in self.extensions:
                extension.after_epoch(progress.history[-1], self.folder)
        if progress.finished or self._asked_of_any().save:
            self.save()

    def is_over(self, progress: Progress) -> bool:
        """After the last epoch, or when enough epochs have brought nothing better."""
        options = self.options
        stop_early = 0 < options.patience <= progress.epochs_without_improvement
        return stop_early or progress.epoch >= options.epochs

    def save(self) -> None:
        self.look_at_losses()
        self.asked.save = False
        save_state(self)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        self.progress = load_state(self)
        self.folder.write_metrics(self.progress.history)  # without epochs that were not saved
        if self.progress.finished:
            self.log("this run is finished: its best epoch is taken as it is")
        else:
            self.log(f"resumed at epoch {self.progress.epoch}, step {self.progress.step}")


def _ids(group: list[dict]) -> list[str]:
    return [sent_id for batch in group for sent_id in batch["sent_ids"]]
