"""Training that goes on from a task's finished run, by another loss: programs share it."""

from pathlib import Path

from torch import nn

from engine.checkpoint import RunFolder
from engine.corpus import save_tokenizer
from engine.errors import InputError
from engine.extension import Extension, equip, load_extensions
from engine.hub import load_tokenizer, save_gpt2
from engine.parallel import Worker
from engine.settings import Settings
from engine.task import Task


def start_model(task: Task, args):
    """(model, args): the model to start from, and what loading the result needs."""
    if args.checkpoint:
        model, settings = task.load(args.checkpoint)
        kept = ("model_size", "gpt_config", "answer_tokens")
        facts = {name: getattr(settings, name) for name in kept if hasattr(settings, name)}
        args = args.replace(started_with=settings.extension, **facts)
    else:
        model, settings = task.start(args.replace(extension=[], started_with=[]))
        args = settings.replace(extension=args.extension)
    without_dropout(model)
    return model, args


def without_dropout(model) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def run_folder(
    task: Task, args, worker: Worker, *, method: str, left_out, kind=RunFolder
) -> RunFolder:
    """Its settings are those by which the task's own program loads the result.

    method: in the folder's name; left_out: flags that change nothing of the result; kind: a class.
    """
    unkept = {*left_out, "started_with"}
    kept = {name: value for name, value in vars(args).items() if name not in unkept}
    kept |= {"start": args.checkpoint, "extension": [*args.started_with, *args.extension]}
    name = f"{method}-{Path(args.model_size).name}"
    settings = Settings(kept, args.defaults)
    return kind(args.runs_dir, task.name, name, settings, writes=worker.is_main)


def extended(args, model, folder: RunFolder) -> list[Extension]:
    """Apply those of --extension; the checkpoint's own are in the model.

    A frozen backbone is no part of a result: where it was fine-tuned before, it is kept beside it
    as a folder in HuggingFace's format, which the result's `model_size` then names.
    """
    extensions = load_extensions(args.extension)
    if args.checkpoint and any(extension.freezes_backbone for extension in extensions):
        start = folder.path / "start"
        if folder.writes and not args.resume:
            tokenizer = load_tokenizer(args.model_size)
            save_gpt2(model.gpt, start, end_token=tokenizer.eos_token_id)
            save_tokenizer(tokenizer, start)
        folder.settings = folder.settings.replace(model_size=str(start))
    equip(model, extensions)
    return extensions


def check_extensions(args) -> None:
    """Refuse those of --extension that need the task's own loss, or a backbone without adapters."""
    for flag, extension in zip(args.extension, load_extensions(args.extension), strict=True):
        hooks = ("penalty", "before_backward")
        if any(getattr(type(extension), hook) is not getattr(Extension, hook) for hook in hooks):
            raise InputError(f"--extension {flag}: it acts on a task's loss, here there is another")
        if extension.freezes_backbone and args.started_with:
            raise InputError(
                f"--extension {flag}: {args.checkpoint} has {', '.join(args.started_with)}, whose "
                f"parameters are trained on: leave it out"
            )
