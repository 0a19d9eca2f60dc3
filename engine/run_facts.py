"""The facts that a run of a task reports at its start and at its end."""

import shlex

import torch

from engine.checkpoint import RunFolder
from engine.devices import hardware
from engine.files import ROOT
from engine.machine_flags import precision_name
from engine.parallel import Worker
from engine.predicting import Predictions, accuracy_and_f1
from engine.run_report import command_line
from engine.settings import Settings

SUBMIT = "python prepare_submit.py  # packs what is in predictions/"


def start_facts(
    task, settings: Settings, model, loaders: dict, folder: RunFolder, worker: Worker
) -> dict:
    """What is about to be trained, on what, and where things go; the model as yet unsharded."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {
        "task": task.name,
        "checkpoint": settings.model_size,
        "mode": getattr(settings, "fine_tune_mode", None),
        "extensions": settings.extension,
        "parameters": {"trainable": trainable, "total": sum(p.numel() for p in parameters)},
        "device": hardware(worker.device),
        "workers": worker.world_size,
        "precision": precision_name(settings),
        "rows": {split: len(loader.dataset) for split, loader in loaders.items()},
        "epochs": settings.epochs,
        "steps_per_epoch": -(-len(loaders["train"]) // settings.accumulate),
        "lr": settings.lr,
        "resume": settings.resume,
        "folder": str(folder.path),
        "predictions": task.outputs(settings),
    }


def end_facts(task, settings: Settings, progress, loaders: dict, folder: RunFolder) -> dict:
    """The best epoch's figures, what they stand beside, the time, and the commands to go on."""
    [best] = [record for record in progress.history if record["epoch"] == progress.best_epoch]
    figures = {name: value for name, value in best.items() if name.startswith("dev_")}
    checkpoint = ["--checkpoint", str(folder.best)]
    return {
        "task": task.name,
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.history),
        "figures": figures,
        "references": task.references(figures, loaders),
        "seconds": sum(record["seconds"] for record in progress.history),
        "folder": str(folder.path),
        "checkpoint": str(folder.best),
        "predictions": task.outputs(settings),
        "report": report_command(folder),
        "predict": command_line([*task.command, *checkpoint], settings),
        "next": command_line([*task.command, *checkpoint], settings, *trial_words(task)),
    }


def report_command(folder: RunFolder) -> str | None:
    """What shows a run on a page, where the programs beside the core are there."""
    program = ROOT / "programs" / "report" / "__main__.py"
    words = ["python", "-m", "programs.report", str(folder.path)]
    return shlex.join(words) if program.is_file() else None


def prediction_facts(task, settings: Settings) -> dict:
    """Of a run that trained nothing."""
    return {
        "task": task.name,
        "checkpoint": settings.checkpoint,
        "predictions": task.outputs(settings),
        "next": SUBMIT,
    }


def trial_words(task) -> list[str]:
    """A flag that tries the trained model, with a text."""
    return [f"--{task.trial}", *task.trial_texts] if task.trial else []


def majority_figures(training: list[int], dev: list[int]) -> dict[str, float]:
    """Dev accuracy and macro-F1 of always saying the training rows' most frequent class."""
    most = int(torch.tensor(training).bincount().argmax())
    scores = accuracy_and_f1(Predictions([], [most] * len(dev), dev))
    return {f"dev_{name}": score for name, score in scores.items()}


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of rows: Wilson 1927, through SciPy."""
    from scipy.stats import binomtest

    interval = binomtest(round(share * rows), rows).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
