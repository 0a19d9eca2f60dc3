"""Any task's checkpoint, opened to be quantized: its model, loaders and figures; files of integers.

A file of integers has the task's name behind "quantized ", so that the task itself refuses it with
one line, the settings and the recipe by which the model is rebuilt, and everything of the model,
a frozen backbone included: packed integers with their scales, and the rest in floating point.
"""

import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from engine.checkpoint import load_trainable_state, load_tree, save_tree, trainable_state
from engine.corpus import save_tokenizer
from engine.errors import InputError
from engine.files import check_writable
from engine.flags import length_limit, take_over
from engine.hub import load_tokenizer, save_gpt2
from engine.parallel import Worker, seed_everything
from engine.settings import Settings
from engine.task import Task
from extensions.lora import merge
from programs.quantize.linear import LINEARS, Grid, Recipe, dequantize_model, quantize_model
from programs.tasks import TASKS

QUANTIZED = "quantized "
EARLIER_SPELLING = "quantised "  # in files that earlier versions wrote
ABSORBED = {"lora", "qat"}  # they end up in the weights
TRAINING_ONLY = {"ema", "swa", "smart"}  # they keep tensors that only training reads
TIMED_BATCHES, TIMED_ROUNDS = 8, 5

# -- a task's checkpoint ---------------------------------------------------------------------------


@dataclass
class Job:
    """A model, and all that its task needs to evaluate it and to predict."""

    task: Task
    model: nn.Module
    settings: Settings  # those that rebuild the model
    args: Settings  # the task's flags
    worker: Worker
    loaders: dict
    made_by: str  # the file of the integers, from which predictions come


def own_name(task: str) -> str:
    """The name of a task, without the mark of a file of integers."""
    return task.removeprefix(QUANTIZED).removeprefix(EARLIER_SPELLING)


def task_of(path, packed: bool) -> Task:
    """The task that a checkpoint is of; packed: whether it should hold integers."""
    stored = str(load_tree(path, only="task").get("task"))
    name = own_name(stored)
    if name != stored and not packed:
        raise InputError(
            f"{path}: quantized already, expected a best.safetensors: use it as it is by "
            f"--quantized, or give the checkpoint that it was made of"
        )
    if packed and name == stored:
        raise InputError(f"{path}: no file of integers: give it by --checkpoint to quantize it")
    if name not in TASKS:
        raise InputError(f"{path}: of task {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def task_flags(args) -> Settings:
    """What is left of the command line, read by the task's own parser; all outputs are checked."""
    path = args.quantized or args.checkpoint
    task = task_of(path, packed=args.quantized is not None)
    _, *chosen = task.command
    own = task.get_args([*args.rest, *chosen, "--checkpoint", str(path)])
    for output in filter(None, (args.out, args.report, args.dequantized)):
        if Path(output).resolve() == Path(path).resolve():
            raise InputError(f"{output}: it would replace what is read: choose another file")
        check_writable(output)
    for output in task.outputs(own).values() if args.predict else ():
        check_writable(output)
    return own


def open_job(args, own: Settings, worker: Worker) -> Job:
    """The model, adapters absorbed, on its device, and its loaders."""
    if worker.world_size > 1:
        raise InputError(f"{worker.world_size} processes, expected one: start it without torchrun")
    seed_everything(own.seed)
    task = task_of(args.quantized or args.checkpoint, packed=args.quantized is not None)
    if args.quantized:
        model, settings = load_quantized(args.quantized)
    else:
        model, settings = load_plain(args.checkpoint, task)
    own = take_over(own, settings)
    model.to(worker.device).eval()
    tokenizer, limit = load_tokenizer(own.model_size), length_limit(own, model)
    loaders = task.build_loaders(own, tokenizer, limit, worker)
    return Job(task, model, settings, own, worker, loaders, args.quantized or args.out)


def load_plain(path, task: Task):
    """(model, settings) of a task's checkpoint, without adapters."""
    return absorbed(*task.load(path), task)


@torch.no_grad()
def absorbed(model, settings: Settings, task: Task):
    """(model, settings) without adapters: the same outputs from plain linears.

    LoRA's products join their matrices; Quadapter's α joins a normalisation, and 1/α what reads it.
    The ranges to which qat rounds inputs are left out.
    """
    names = {flag: flag.partition(":")[0] for flag in settings.extension}
    kept = [flag for flag, name in names.items() if name not in ABSORBED | TRAINING_ONLY]
    if kept == settings.extension:
        return model, settings
    scaled = [(layer, *place) for layer in model.gpt.gpt_layers for place in _scaled(layer)]
    merge(model)
    for layer, norm, linears, alpha in scaled:
        norm.weight.mul_(alpha)
        norm.bias.mul_(alpha)
        for name in linears:
            layer.get_submodule(name).weight.div_(alpha)
    state = model.state_dict()
    settings = settings.replace(extension=kept)
    plain = task.build_model(settings, pretrained=False)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.train(model.training), settings


def _scaled(layer) -> list[tuple]:
    """(normalisation, names of the linears that read it, Quadapter's α between), if there is α."""
    attention, _, interm, _ = LINEARS
    places = []
    for norm, names, reader in (
        (layer.attention_layer_norm, attention, layer.self_attention),
        (layer.out_layer_norm, interm, layer.interm_dense),
    ):
        alpha = getattr(getattr(reader, "input_quantizer", None), "alpha", None)
        if alpha is not None:
            places.append((norm, names, alpha))
    return places


# -- files -----------------------------------------------------------------------------------------


def save_quantized(path, job: Job, recipe: Recipe) -> None:
    """Write the model as it is: integers where the recipe has them, the rest in floating point."""
    tree = {
        "task": QUANTIZED + job.task.name,
        "settings": vars(job.settings),
        "recipe": asdict(recipe),
        "model": job.model.state_dict(),
    }
    save_tree(path, tree)


def load_quantized(path):
    """(model, settings) of a file of integers; they stay packed in memory, too."""
    tree = load_tree(path)
    facts, settings = tree["recipe"], Settings(tree["settings"])
    recipe = Recipe(**facts | {"grid": Grid(**facts["grid"])})
    model = TASKS[own_name(tree["task"])].build_model(settings, pretrained=False)
    quantize_model(model.gpt, recipe, empty=True)
    model.requires_grad_(True)  # so that all of it is checked and filled
    load_trainable_state(model, tree["model"], path)
    return model.eval(), settings


@torch.no_grad()
def save_dequantized(path, job: Job) -> None:
    """Write a checkpoint for the task's own --checkpoint, its weights the products s q.

    A frozen backbone is no part of such a file: it goes into a folder beside it, in HuggingFace's
    format, which the checkpoint's `model_size` then names.
    """
    model, settings = job.task.build_model(job.settings, pretrained=False), vars(job.settings)
    dequantize_model(job.model)
    model.load_state_dict(job.model.state_dict())
    if not model.gpt.word_embedding.weight.requires_grad:
        folder = Path(path).resolve().with_suffix("")
        tokenizer = load_tokenizer(job.settings.model_size)
        save_gpt2(model.gpt, folder, end_token=tokenizer.eos_token_id)
        save_tokenizer(tokenizer, folder)
        settings = settings | {"model_size": str(folder)}
    state = trainable_state(model)
    save_tree(path, {"task": job.task.name, "settings": settings, "metrics": {}, "model": state})


# -- figures ---------------------------------------------------------------------------------------


def dev_figures(job: Job) -> dict[str, float]:
    return job.task.evaluate(job.model, job.loaders["dev"], job.worker.device)


def seconds_in_turn(job: Job, models: list[nn.Module]) -> tuple[int, list[float]]:
    """How many dev rows were timed, spread over all, and each model's median seconds for them.

    The models take turns, so that the machine's moods meet all of them; a round before warms up.
    """
    batches = list(job.loaders["dev"])
    batches = batches[:: math.ceil(len(batches) / TIMED_BATCHES)]
    seconds: list[list[float]] = [[] for _ in models]
    for number in range(1 + TIMED_ROUNDS):
        for model, passes in zip(models, seconds, strict=True):
            started = time.perf_counter()
            job.task.evaluate(model, batches, job.worker.device)  # ends with numbers on the CPU
            if number:
                passes.append(time.perf_counter() - started)
    return sum(len(batch["sent_ids"]) for batch in batches), list(map(statistics.median, seconds))


def listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} :: {figures[key]:.4f}" for key in figures)
