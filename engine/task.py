"""The one flow of every task: flags ─▶ model ─▶ loaders ─▶ fit ─▶ predictions.

A task script says in a subclass of `Task` what is special about its task, and ends in `run_tasks`.
"""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from engine.batches import forward_tokens
from engine.checkpoint import RunFolder, load_model
from engine.errors import Parser, nothing_trained, notice
from engine.extension import equip, load_extensions
from engine.files import check_writable
from engine.flags import (
    add_task_arguments,
    check_fit_flags,
    fit_options,
    in_data_dir,
    length_limit,
    take_over,
    with_limited_outputs,
)
from engine.hub import load_tokenizer
from engine.inputs import run_inputs
from engine.parallel import Worker, joined_worker, seed_everything, seed_worker
from engine.run_facts import end_facts, prediction_facts, start_facts
from engine.run_report import Report, reporting
from engine.settings import Settings
from engine.sharding import whole_weights
from engine.training import fit
from engine.trying import check_untrained, checkpoint_to_try

PREDICTED = ("dev", "test")  # splits with a file of predictions


class Task:
    """What `run` and the programs need to know of a task.

    name: of its run folders and checkpoints. command: the program and the flags that choose it.
    metric: the figure of `evaluate` that decides the best epoch. splits: what its loaders are of;
    tested: those of them that `test` reads. output_flags: of the two prediction files. trial: the
    flag, as an attribute of the settings, of texts of one's own that a trained model is tried on;
    trial_texts: an example of them.
    """

    name: str
    command: tuple[str, ...]
    model: type[nn.Module]
    metric, maximize = "dev_acc", True
    splits, tested = ("train", "dev", "test"), ("dev", "test")
    output_flags: tuple[str, str]
    trial, trial_texts = "", ()

    @property
    def doc(self) -> str:
        """The docstring of the task's file, of which `--help` tells."""
        return sys.modules[type(self).__module__].__doc__ or ""

    # -- flags ------------------------------------------------------------------------------------

    def add_arguments(self, parser) -> None:
        """Add the task's flags to the parser."""
        add_task_arguments(parser)

    def resolve(self, settings: Settings) -> Settings:
        """Check the task's own flags, and fill in those that depend on others."""
        return settings

    def get_args(self, argv=None) -> Settings:
        """The flags of a command line; None: of this process."""
        parser = Parser(doc=self.doc)
        self.add_arguments(parser)
        settings = self.resolve(in_data_dir(Settings.parse(parser, argv)))
        check_fit_flags(settings)
        for flag in ("checkpoint", self.trial):
            check_untrained(settings, flag)
        return with_limited_outputs(settings)

    def paths(self, settings: Settings) -> dict[str, str]:
        """The data file of each split."""
        raise NotImplementedError

    def outputs(self, settings: Settings) -> dict[str, str]:
        """The files of predictions for dev and test."""
        paths = (getattr(settings, flag) for flag in self.output_flags)
        return dict(zip(PREDICTED, paths, strict=True))

    def run_name(self, settings: Settings) -> str:
        """In the name of a run's folder, what a reader looks for."""
        return Path(settings.model_size).name

    # -- model ------------------------------------------------------------------------------------

    def model_settings(self, settings: Settings) -> dict:
        """What the model is built from beside the flags and GPT-2's shape."""
        return {}

    def start(self, settings: Settings):
        """(model, settings) of `--model_size`; with these settings it can be built again."""
        settings = settings.replace(**self.model_settings(settings))
        model = self.build_model(settings)
        return model, settings.replace(gpt_config=asdict(model.gpt.config))

    def build_model(self, settings, pretrained: bool = True):
        """The one constructor, for training and for loading; settings as a checkpoint has them.

        With pretrained False the weights are random, to be filled from a checkpoint.
        """
        extensions = load_extensions(settings.extension)
        how = {
            "pretrained": pretrained,
            "mapped": any(each.replaces_weights for each in extensions),
        }
        model = self.model(SimpleNamespace(**vars(settings), **how))
        equip(model, extensions)
        return model

    def load(self, path):
        """(model, settings) of a checkpoint of this task."""
        return load_model(path, self.name, self.build_model)

    # -- data, training, predictions --------------------------------------------------------------

    def read(self, path, *, labelled: bool, say) -> list:
        """The rows of a data file; `say` gets a line about those that are left out."""
        raise NotImplementedError

    def build_loaders(
        self, settings: Settings, tokenizer, limit: int, worker: Worker, splits=None
    ) -> dict:
        """The loaders of these splits, by default all; only train is shuffled.

        limit: tokens; longer texts are cut.
        """
        raise NotImplementedError

    def loss_fn(self, logits, batch: dict):
        """The loss summed over the batch's targets, in nats."""
        raise NotImplementedError

    def evaluate(self, model, loader, device, forward=forward_tokens) -> dict[str, float]:
        """Figures on the dev set, in float32; each worker runs the same forward passes."""
        raise NotImplementedError

    def trained_part(self, settings: Settings, model, loaders: dict, worker: Worker):
        """(module, loaders, forward): what `fit` trains, on what, and how that is called."""
        return model, loaders, forward_tokens

    def check_test(self, settings: Settings, model) -> None:
        """Refuse, before training, what `test` would refuse."""

    def references(self, figures: dict[str, float], loaders: dict) -> dict[str, dict]:
        """What dev figures are to be compared with: "interval", "rows", "majority" of each."""
        return {}

    def test(self, settings: Settings, model, loaders: dict, worker: Worker, made_by) -> dict:
        """Write the predictions; made_by: the run's folder or the checkpoint.

        What it gives is what came of that, for the report of the end: "figures", and whatever else
        it prints as a result.
        """
        raise NotImplementedError

    def try_out(self, settings: Settings, model, tokenizer, limit: int, device) -> None:
        """Print what the model makes of the texts of the flag `trial`."""
        raise NotImplementedError


def train(
    task: Task,
    settings: Settings,
    model,
    loaders: dict,
    folder: RunFolder,
    worker: Worker,
    report: Report | None = None,
):
    """Fine-tune; afterwards the model holds its best epoch."""
    said = {}
    if report:
        said = {"log": report.log, "on_epoch": lambda record: report.epoch(record, task.name)}
    part, loaders, forward = task.trained_part(settings, model, loaders, worker)
    return fit(
        part,
        loaders["train"],
        loss_fn=task.loss_fn,
        evaluate=lambda m: task.evaluate(m, loaders["dev"], worker.device, forward=forward),
        options=fit_options(settings, metric=task.metric, maximize=task.maximize),
        folder=folder,
        worker=worker,
        extensions=model.extensions,
        forward=forward,
        **said,
    )


def run(task: Task, settings: Settings, worker: Worker, report: Report) -> None:
    """Train and predict, or only predict with `--checkpoint`."""
    for path in task.outputs(settings).values():
        check_writable(path)
    seed_everything(settings.seed)
    if settings.checkpoint:
        model, trained_with = task.load(settings.checkpoint)
        settings = take_over(settings, trained_with)
    else:
        model, settings = task.start(settings)
    model.to("cpu" if settings.shard else worker.device)  # parts go there one by one
    task.check_test(settings, model)
    splits = task.tested if settings.checkpoint else task.splits
    tokenizer, limit = load_tokenizer(settings.model_size), length_limit(settings, model)
    loaders = task.build_loaders(settings, tokenizer, limit, worker, splits)
    made_by = settings.checkpoint
    if not made_by:
        seed_worker(settings.seed, worker)
        inputs = run_inputs(model, tokenizer, loaders)
        name = task.run_name(settings)
        folder = RunFolder(
            settings.runs_dir, task.name, name, settings, writes=worker.is_main, inputs=inputs
        )
        report.start(start_facts(task, settings, model, loaders, folder, worker))
        progress = train(task, settings, model, loaders, folder, worker, report)
        made_by = folder.path
    with whole_weights(model):
        tested = task.test(settings, model, loaders, worker, made_by)
    if settings.checkpoint:
        report.end(prediction_facts(task, settings) | tested)
    else:
        report.end(tested | end_facts(task, settings, progress, loaders, folder))


def try_out(tasks: list[Task], settings: Settings, worker: Worker) -> None:
    """Try the model of a checkpoint, or of the newest run of one of these tasks."""
    task, path = checkpoint_to_try(tasks, settings)
    model, trained_with = task.load(path)
    settings = take_over(settings, trained_with)
    notice(f"the model of {path}")
    tokenizer, limit = load_tokenizer(settings.model_size), length_limit(settings, model)
    task.try_out(settings, model.to(worker.device), tokenizer, limit, worker.device)


def run_tasks(tasks: Iterable[Task], settings: Settings) -> None:
    """Run one task after another, alone or as a process of torchrun; or try a trained model."""
    tasks = list(tasks)
    with joined_worker(settings.use_gpu) as worker:
        if getattr(settings, tasks[0].trial, None):
            with nothing_trained():
                try_out(tasks, settings, worker)
            return
        with reporting(settings, worker) as report:
            for task in tasks:
                with nothing_trained() if settings.checkpoint else contextlib.nullcontext():
                    run(task, settings, worker, report)
