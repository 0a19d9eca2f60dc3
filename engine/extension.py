"""The seam through which a technique changes a run, by name: `--extension lora:rank=16,alpha=32`.

The core never imports `extensions/`: a technique is loaded when a run names it.
"""

import ast
import contextlib
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from engine.checkpoint import RunFolder
from engine.errors import InputError, did_you_mean
from engine.files import ROOT
from engine.forms import DENSE, accelerate

TAKES_OTHERS = "takes others"  # of a dataclass's field: see `parse_options`


class Extension:
    """A change to a run. Each hook is neutral by default; override the ones that it is about.

    An extension is a dataclass in `extensions/<name>.py`; its fields are its options. A run has one
    instance: what a hook stores in it, the next one finds. Randomness is drawn from torch, whose
    state a checkpoint keeps.

    recordable: a step's forward and backward pass may be recorded once and replayed on a GPU, where
    Python is not run again. So modules, `penalty` and `before_backward` look at no number there,
    keep nothing but in tensors that they change in place, and draw on the device alone.

    changes_parameters: the backbone is not frozen, but has others after `prepare_model`; then that
    comes before those of extensions that look at all of them.

    replaces_weights: `prepare_model` replaces the matrices of all layers, one by one; they may
    stay in the checkpoint's files until then (engine/mapped_weights.py).

    shardable: the weights may be sharded (engine/sharding.py). Whole weights are then seen by what
    runs inside a layer's or the model's forward pass alone; the other hooks see shares.
    """

    freezes_backbone = False
    recordable = False
    shardable = False
    changes_parameters = False
    replaces_weights = False

    def prepare_model(self, model) -> None:
        """Change the model, after the weights are in."""

    def check(self, model) -> None:
        """Refuse what other extensions made of the model; called when all have prepared it."""

    def make_optimizer(self, model, lr: float, weight_decay: float):
        """An optimizer in AdamW's place, or None; at most one extension of a run brings one."""
        return None

    def penalty(self, model, batch: dict, logits):
        """A number that is added to the task's mean loss over this batch."""
        return 0.0

    def before_backward(self, model, batch: dict) -> None:
        """Called for each part of a step, after its forward pass and before its backward pass."""

    def differentiated(self, model):
        """A context in which the model has the weights to take a step's gradient at, or None.

        It is entered once a gradient at the model's own weights is in `.grad`; inside, the gradient
        of the same batches takes its place. The step's loss and right answers stay those of the
        model's own weights, which must be back afterwards. None: that first gradient is the step's.
        """
        return None

    def after_step(self, model) -> None:
        """Called right after the weights moved."""

    def evaluated(self, model):
        """A context in which the model has the weights to be judged, and kept if they are best."""
        return contextlib.nullcontext()

    def after_epoch(self, record: dict, folder: RunFolder) -> None:
        """Called on the main worker with an epoch's figures and the run's folder."""


def technique_of(extension: Extension) -> str:
    """The name by which a run's flags know an extension: that of its file."""
    return type(extension).__module__.rpartition(".")[2]


def apply_extensions(model, extensions: Iterable[Extension]) -> None:
    """Freeze the backbone, once, if any extension wants that; then let each change the model.

    Those that freeze it, or change its parameters, come first: the others find what is there then.
    The model keeps them as `model.extensions`, in the order given, for the run that follows; and
    in `model.unrecordable` for all later runs those that change it so that no step is recorded.
    """
    model.extensions = list(extensions)
    shaping = {technique_of(e) for e in model.extensions if _prepares(e) and not e.recordable}
    model.unrecordable = shaping | getattr(model, "unrecordable", set())
    if any(extension.freezes_backbone for extension in model.extensions):
        model.gpt.requires_grad_(False)
    for extension in sorted(model.extensions, key=_comes_later):
        extension.prepare_model(model)
    for extension in model.extensions:
        extension.check(model)


def _prepares(extension: Extension) -> bool:
    return type(extension).prepare_model is not Extension.prepare_model


def _comes_later(extension: Extension) -> bool:
    return not (extension.freezes_backbone or extension.changes_parameters)


def equip(model, extensions: Iterable[Extension]) -> None:
    """Give a task's model its fast form, if there is one, and then its extensions."""
    extensions = list(extensions)
    accelerate(model, extended=bool(extensions))
    apply_extensions(model, extensions)


def remedy_for_frozen(model, otherwise: str) -> str:
    """What to do about frozen weights: train them, if the run's mode alone froze them."""
    parts = (model.gpt.gpt_layers, model.gpt.final_layer_norm)
    trained = any(p.requires_grad for part in parts for p in part.parameters())
    by_extension = any(e.freezes_backbone for e in getattr(model, "extensions", []))
    return otherwise if trained or by_extension else "give --fine-tune-mode full-model"


def replace_attention(model, attend, *, technique: str, takes_prefix: bool) -> None:
    """Put a function with the signature of `causal_attention` in the place of dense attention.

    technique: its name, for errors. takes_prefix: whether it is right with more keys than queries,
    which a prefix (extensions/prefix.py) brings; one that comes later asks for the same.
    """
    for layer in model.gpt.gpt_layers:
        attention = layer.self_attention
        prefix = getattr(attention, "prefix", None)
        place = prefix or attention
        if place.attend not in DENSE or (prefix and not takes_prefix):
            raise InputError(
                f"{technique}: it goes with no {'prefix' if prefix else 'other attention'}"
            )
        attention.takes_prefix = takes_prefix
        place.attend = attend


def load_extensions(flags: Iterable[str]) -> list[Extension]:
    """`["lora:rank=16,alpha=32", "soap"]` -> the extensions with these options, by name."""
    return [_load_extension(flag) for flag in flags]


def check_given_once(flags: list[str]) -> None:
    """Refuse a technique that a command line names twice."""
    names = [flag.partition(":")[0] for flag in flags]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--extension: {twice[0]} is given twice: give it once, with all options")


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
        if base in found or (module, original) == ("engine.extension", "Extension"):
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
    if name.isidentifier() and (ROOT / "programs" / name / "__main__.py").exists():
        return InputError(
            f"--extension {name}: a program, not a change to a run: "
            f"python -m programs.{name} --help tells its flags"
        )
    known = techniques()
    shown = name if name and name.isprintable() else repr(name)
    meant = did_you_mean(name, known)
    nearest_first = difflib.get_close_matches(name.lower(), known, n=len(known) + 1, cutoff=0)
    listed = ", ".join(nearest_first) or "none"
    return InputError(f"--extension {shown}: no such technique; {meant}there are {listed}")


def parse_options(where: str, text: str, options_class) -> dict:
    """`"rank=16,alpha=32"` -> the values of a dataclass's fields, in their types.

    where: the flag and the name before the colon, for errors. A field with `TAKES_OTHERS` in its
    metadata gets a dict of all options that no field is named after, as they stand.
    """
    own = [f for f in fields(options_class) if not f.metadata.get(TAKES_OTHERS)]
    others = [f.name for f in fields(options_class) if f.metadata.get(TAKES_OTHERS)]
    types = {f.name: f.type for f in own}
    listed = ", ".join(f.name if f.default is MISSING else f"{f.name}={f.default}" for f in own)
    options = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if others and equals and key not in types:
            options.setdefault(others[0], {})[key] = value
            continue
        if key not in types or not equals:
            raise InputError(f"{where}: option {part!r}, expected some of: {listed}")
        kind = types[key] if isinstance(types[key], str) else types[key].__name__
        try:
            convert = {"int": int, "float": float, "bool": parse_bool}.get(kind, str)
            options[key] = convert(value)
        except ValueError as error:
            raise InputError(f"{where}: {key}={value}, expected {kind}") from error
    return options


def parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
