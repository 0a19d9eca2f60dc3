"""The flags that all tasks share."""

import math
from dataclasses import fields
from pathlib import Path

from engine.batches import TokenDataset, make_loader
from engine.errors import InputError
from engine.extension import check_given_once
from engine.machine_flags import check_precision
from engine.options import FitOptions
from engine.parallel import Worker
from engine.predicting import MOST_ROWS
from engine.settings import Settings


def add_task_arguments(parser, lr: float | None = 1e-5, lr_help: str | None = None) -> None:
    """The course's flags that all tasks share, and the optional ones."""
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=lr, help=lr_help)
    parser.add_argument("--model_size", default="gpt2", help="a size, a hub name or a folder")
    add_data_dir(parser)
    add_max_length(parser)
    add_fit_arguments(parser)
    add_shard(parser)
    add_report_arguments(parser.add_argument_group("what it says"))


def add_report_arguments(group) -> None:
    """How much a task says, and to whom."""
    group.add_argument(
        "--quiet", action="store_true", help="nothing but warnings, errors and the results"
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line on stdout: start, epochs and end of training, or answers",
    )


def add_fit_arguments(parser) -> None:
    """The optional flags that all tasks share."""
    _add_run_arguments(parser.add_argument_group("the run, all optional"))
    _add_training_arguments(parser.add_argument_group("training, all optional"))
    _add_speed_arguments(parser.add_argument_group("speed, all optional"))


def _add_run_arguments(group) -> None:
    group.add_argument("--resume", action="store_true", help="go on with the run of these flags")
    group.add_argument(
        "--checkpoint", metavar="FILE", help="a best.safetensors: predict only, without training"
    )
    group.add_argument(
        "--limit",
        type=int,
        help="use the first N rows of each file, for a quick look; outputs get names of their own",
    )
    group.add_argument(
        "--runs_dir", default="runs", help="checkpoints and logs go below this folder"
    )
    group.add_argument(
        "--save_minutes",
        type=float,
        default=10.0,
        help="between saves of what --resume needs; 0: after each step",
    )


def _add_training_arguments(group) -> None:
    group.add_argument(
        "--weight_decay",
        type=float,
        default=0.0,
        help="of matrices and embeddings; biases and normalizations have none",
    )
    group.add_argument("--warmup", type=float, default=0.0, help="share of steps, for example 0.1")
    group.add_argument("--schedule", choices=("constant", "linear", "cosine"), default="constant")
    group.add_argument("--clip", type=float, default=0.0, help="largest gradient norm; 0: none")
    group.add_argument("--accumulate", type=int, default=1, help="batches to one optimizer step")
    group.add_argument(
        "--extension",
        action="append",
        default=[],
        metavar="NAME[:OPTION=VALUE,…]",
        help="a technique from extensions/, may be given several times",
    )


def _add_speed_arguments(group) -> None:
    group.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 autocast in training, on GPUs and on CPUs with units for it; dev figures "
        "and predictions are in float32",
    )
    group.add_argument(
        "--fp16",
        action="store_true",
        help="float16 autocast in its place, with a loss scale: for GPUs without bfloat16, as the "
        "T4",
    )
    group.add_argument(
        "--tf32", action="store_true", help="float32 matrix products in TF32 in training, on GPUs"
    )
    group.add_argument(
        "--compile",
        action="store_const",
        const="default",
        help="torch.compile in training; a task's steps are then not recorded as CUDA graphs",
    )
    group.add_argument(
        "--eager",
        action="store_true",
        help="on GPUs, neither training steps nor decoding recorded as CUDA graphs",
    )


def add_shard(parser) -> None:
    parser.add_argument(
        "--shard",
        action="store_true",
        help="with torchrun: each process holds its share of weights, gradients and moments",
    )


def add_sampling_arguments(parser) -> None:
    """How texts are sampled; `check_sampling` refuses what makes no sense."""
    parser.add_argument("--temperature", type=float, default=1.2, help="0: greedy")
    parser.add_argument(
        "--top_p", type=float, default=0.9, help="nucleus sampling's share; 0: greedy"
    )
    parser.add_argument("--top_k", type=int, default=0, help="0: no cut")
    parser.add_argument("--max_new_tokens", type=int, default=256)


def check_sampling(settings) -> None:
    check_range(settings, "temperature", 0)
    check_range(settings, "top_p", 0, 1)
    check_range(settings, "top_k", 0)
    check_range(settings, "max_new_tokens", 1)


def add_max_length(parser) -> None:
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="longer texts are cut to N tokens; default: the model's positions",
    )


def length_limit(args, model) -> int:
    """How many tokens a text may have: --max_length, by default as many as there are positions."""
    positions = model.gpt.config.max_position_embeddings
    check_range(args, "max_length", 1, positions)
    return args.max_length or positions


def take_over(settings: Settings, trained_with) -> Settings:
    """The settings, with the flags of a checkpoint on which its predictions depend.

    --max_length may be given anew.
    """
    names = [n for n in ("model_size", "fine_tune_mode") if hasattr(trained_with, n)]
    max_length = settings.max_length
    if max_length is None:
        max_length = getattr(trained_with, "max_length", None)
    return settings.replace(max_length=max_length, **{n: getattr(trained_with, n) for n in names})


def add_data_dir(parser) -> None:
    parser.add_argument(
        "--data_dir", default="data", help="where the data files are, by their names"
    )


def in_data_dir(settings: Settings) -> Settings:
    """The settings with default files looked for in --data_dir; paths given by flag stay."""
    given, root = settings.changed(), Path(settings.data_dir)
    defaults = {n: str(path) for n, path in settings.defaults.items() if n not in given}
    return settings.replace(
        **{
            name: str(root / path.removeprefix("data/"))
            for name, path in defaults.items()
            if path.startswith("data/")
        }
    )


def limited_path(path, limit: int | None) -> str:
    """Where a run puts what a whole run puts at `path`: with --limit, beside it."""
    path = Path(path)
    return str(path.with_name(f"{path.stem}.limit-{limit}{path.suffix}") if limit else path)


def with_limited_outputs(settings: Settings) -> Settings:
    """The outputs of a --limit run with names of their own; those given by flag stay."""
    outputs = {name: path for name, path in vars(settings).items() if name.endswith("_out")}
    defaults = {n: path for n, path in outputs.items() if path and path == settings.defaults[n]}
    return settings.replace(
        **{name: limited_path(path, settings.limit) for name, path in defaults.items()}
    )


def check_range(args, name: str, low: float, high: float = math.inf) -> None:
    """Refuse a flag outside low <= value <= high; a flag that was not given is fine."""
    value = getattr(args, name)
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        expected = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"--{name} {value}: expected {expected}")


def check_fit_flags(args) -> None:
    """Refuse what makes no sense, before anything is loaded."""
    for name in ("epochs", "accumulate", "batch_size", "limit"):
        check_range(args, name, 1)
    if hasattr(args, "max_length"):
        check_range(args, "max_length", 1)
    for name in ("lr", "weight_decay", "clip", "save_minutes"):
        check_range(args, name, 0)
    check_range(args, "warmup", 0, 1)
    check_range(args, "seed", 0, 2**32 - 1)
    check_given_once(args.extension)
    check_precision(args)


def fit_options(args, metric: str, maximize: bool = True) -> FitOptions:
    """FitOptions from parsed flags."""
    taken = {f.name: getattr(args, f.name) for f in fields(FitOptions) if hasattr(args, f.name)}
    return FitOptions(**taken | {"metric": metric, "maximize": maximize})


def split_loader(
    args,
    dataset: TokenDataset,
    split: str,
    worker: Worker,
    batch_size: int,
    eval_batch_size: int = MOST_ROWS,
):
    """The loader of a task's train, dev or test rows: only train is shuffled, and shared out.

    eval_batch_size: dev or test rows that a GPU reads at once, if batch_size are not more; with
    --shard, whose batches are not cut where memory runs out, it reads batch_size.
    """
    if split != "train":
        if worker.device.type != "cpu" and not args.shard:
            batch_size = max(batch_size, eval_batch_size)
        return make_loader(dataset, batch_size, seed=args.seed)
    return make_loader(
        dataset,
        batch_size,
        seed=args.seed,
        shuffle=True,
        rank=worker.rank,
        workers=worker.world_size,
    )
