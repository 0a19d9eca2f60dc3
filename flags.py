"""The flags that all tasks share, and extensions by name: `--extension lora:rank=16,alpha=32`.

The core never imports `extensions/`: a technique is loaded when a run names it.
"""

import argparse
import ast
import difflib
import importlib
import math
import pkgutil
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from batches import TokenDataset, make_loader
from compiling import CUDA_GRAPHS, MODES, check_compile, padding_multiple
from parallel import Worker, has_bf16_units
from training import Extension, FitOptions
from utils import InputError, did_you_mean

JUDGED = 64  # dev or test rows that a GPU reads at once


def add_fit_arguments(parser) -> None:
    """The optional flags that all tasks share."""
    group = parser.add_argument_group("training, all optional")
    group.add_argument("--resume", action="store_true", help="go on with the run of these flags")
    group.add_argument(
        "--checkpoint", metavar="FILE", help="a best.safetensors: predict, train not"
    )
    group.add_argument(
        "--limit",
        type=int,
        help="use the first N rows of each file, for a quick look; outputs get names of their own",
    )
    group.add_argument("--weight_decay", type=float, default=0.0)
    group.add_argument("--warmup", type=float, default=0.0, help="share of steps, for example 0.1")
    group.add_argument("--schedule", choices=("constant", "linear", "cosine"), default="constant")
    group.add_argument("--clip", type=float, default=0.0, help="largest gradient norm; 0: none")
    group.add_argument("--accumulate", type=int, default=1, help="batches to one optimizer step")
    group.add_argument(
        "--bf16",
        action="store_true",
        help="bfloat16 autocast, on GPUs and on CPUs with units for it",
    )
    group.add_argument(
        "--tf32", action="store_true", help="float32 matrix products in TF32 in training, on GPUs"
    )
    group.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=MODES,
        metavar="MODE",
        help=f"torch.compile in training; mode {CUDA_GRAPHS}: by CUDA graphs, for small batches",
    )
    group.add_argument(
        "--extension",
        action="append",
        default=[],
        metavar="NAME[:OPTION=VALUE,…]",
        help="a technique from extensions/, may be given several times",
    )
    group.add_argument(
        "--runs_dir", default="runs", help="checkpoints and logs go below this folder"
    )
    group.add_argument("--save_minutes", type=float, default=10.0, help="between saves in an epoch")


class _DataDir(argparse.Action):
    """`--data_dir DIR`: defaults below data/ are looked for in DIR; paths given by flag stay."""

    def __call__(self, parser, namespace, value, option_string=None):
        for action in parser._actions:
            default = str(action.default)
            if default.startswith("data/") and getattr(namespace, action.dest) == default:
                setattr(namespace, action.dest, str(Path(value) / default.removeprefix("data/")))
        setattr(namespace, self.dest, value)


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


def take_over(args, trained_with) -> None:
    """Into args, the flags of a checkpoint on which its predictions depend.

    --max_length may be given anew.
    """
    for name in ("model_size", "fine_tune_mode"):
        if hasattr(trained_with, name):
            setattr(args, name, getattr(trained_with, name))
    args.max_length = args.max_length or getattr(trained_with, "max_length", None)


def add_data_dir(parser) -> None:
    parser.add_argument(
        "--data_dir",
        default="data",
        action=_DataDir,
        help="where the data files are, by their names",
    )


def limited_path(path, limit: int | None) -> str:
    """Where a run puts what a whole run puts at `path`: with --limit, beside it."""
    path = Path(path)
    return str(path.with_name(f"{path.stem}.limit-{limit}{path.suffix}") if limit else path)


def mark_limited_outputs(args, parser) -> None:
    """Give the outputs of a --limit run names of their own; those given by flag stay."""
    for name, value in vars(args).items():
        if name.endswith("_out") and value and value == parser.get_default(name):
            setattr(args, name, limited_path(value, args.limit))


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
    for name in ("lr", "weight_decay", "clip", "save_minutes"):
        check_range(args, name, 0)
    check_range(args, "warmup", 0, 1)
    check_range(args, "seed", 0, 2**32 - 1)
    if args.bf16 and not has_bf16_units("cuda" if args.use_gpu else "cpu"):
        raise InputError("--bf16: CPUs without bf16 units are 30 times slower: add --use_gpu")
    if args.tf32 and not args.use_gpu:
        raise InputError("--tf32: CPUs have no such format: add --use_gpu, or give --bf16")
    check_compile(args)


def fit_options(args, metric: str, maximise: bool = True) -> FitOptions:
    """FitOptions from parsed flags."""
    taken = {f.name: getattr(args, f.name) for f in fields(FitOptions) if hasattr(args, f.name)}
    return FitOptions(**taken | {"metric": metric, "maximise": maximise})


def split_loader(
    args, dataset: TokenDataset, split: str, worker: Worker, batch_size: int, judged: int = JUDGED
):
    """The loader of a task's train, dev or test rows: only train is shuffled, and shared out.

    judged: dev or test rows that a GPU reads at once, if batch_size are not more.
    """
    if split != "train":
        if worker.device.type == "cuda":
            batch_size = max(batch_size, judged)
        return make_loader(dataset, batch_size, seed=args.seed)
    return make_loader(
        dataset,
        batch_size,
        seed=args.seed,
        shuffle=True,
        rank=worker.rank,
        workers=worker.count,
        multiple=padding_multiple(args.compile),
    )


def load_extensions(flags: Iterable[str]) -> list[Extension]:
    """`["lora:rank=16,alpha=32", "soap"]` -> the extensions with these options, by name."""
    return [_load_extension(flag) for flag in flags]


def _load_extension(flag: str) -> Extension:
    name, _, options = flag.partition(":")
    files = extension_files()
    if name not in files:
        raise _no_technique(name)
    try:
        module = importlib.import_module(f"extensions.{name}")
    except ModuleNotFoundError as error:
        raise InputError(f"--extension {name}: {error}: install the package that has it") from error
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Extension)
        and is_dataclass(value)
        and value.__module__ == module.__name__
    ]
    if not classes and hasattr(module, "main"):
        raise InputError(
            f"--extension {name}: a program, not a change to a run: "
            f"python -m extensions.{name} --help tells its flags"
        )
    if not classes:
        raise _no_technique(name)
    if len(classes) > 1:
        names = ", ".join(cls.__name__ for cls in classes)
        raise InputError(f"--extension {name}: {files[name]}: {names}: expected one technique")
    return classes[0](**parse_options(f"--extension {name}", options, classes[0]))


def extension_files() -> dict[str, Path]:
    """The modules of extensions/, of this folder and of others on the import path, by name."""
    try:
        package = importlib.import_module("extensions")
    except ModuleNotFoundError:
        return {}
    found = pkgutil.iter_modules(getattr(package, "__path__", []))
    return {m.name: Path(m.module_finder.path, f"{m.name}.py") for m in found if not m.ispkg}


def techniques() -> list[str]:
    """The names that --extension takes: of modules with a dataclass that derives from `Extension`.

    Modules are read, not imported: that is quick, and what one of them needs may be missing.
    """
    files = extension_files()
    return sorted(name for name in files if any(_derived_classes(name, files).values()))


def _derived_classes(name: str, files: dict[str, Path]) -> dict[str, bool]:
    """A module's classes that derive from `Extension`, and whether each is a dataclass."""
    found: dict[str, bool] = {}
    imported: dict[str, tuple[str, str]] = {}

    def derives(base: str) -> bool:
        module, original = imported.get(base, ("", ""))
        if base in found or (module, original) == ("training", "Extension"):
            return True
        others = {f"extensions.{other}": other for other in files if other != name}
        return module in others and original in _derived_classes(others[module], files)

    try:
        tree = ast.parse(files[name].read_bytes())
    except SyntaxError:  # unfinished: it cannot be loaded either
        return found
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            imported |= {a.asname or a.name: (node.module or "", a.name) for a in node.names}
        elif isinstance(node, ast.ClassDef) and any(derives(ast.unparse(b)) for b in node.bases):
            found[node.name] = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    return found


def _no_technique(name: str) -> InputError:
    """What is said of a name that no technique has: which there are, the closest first."""
    known = techniques()
    shown = name if name and name.isprintable() else repr(name)
    meant = did_you_mean(name, known)
    nearest_first = difflib.get_close_matches(name.lower(), known, n=len(known) + 1, cutoff=0)
    listed = ", ".join(nearest_first) or "none"
    return InputError(f"--extension {shown}: no such technique; {meant}there are {listed}")


def parse_options(where: str, text: str, options_class) -> dict:
    """`"rank=16,alpha=32"` -> the values of a dataclass's fields, in their types.

    where: the flag and the name before the colon, for errors.
    """
    types = {f.name: f.type for f in fields(options_class)}
    listed = ", ".join(
        f.name if f.default is MISSING else f"{f.name}={f.default}" for f in fields(options_class)
    )
    options = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if key not in types or not equals:
            raise InputError(f"{where}: option {part!r}, expected some of: {listed}")
        kind = types[key] if isinstance(types[key], str) else types[key].__name__
        try:
            convert = {"int": int, "float": float, "bool": _parse_bool}.get(kind, str)
            options[key] = convert(value)
        except ValueError as error:
            raise InputError(f"{where}: {key}={value}, expected {kind}") from error
    return options


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
