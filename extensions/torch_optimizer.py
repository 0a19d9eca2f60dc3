"""Any optimizer of torch.optim in AdamW's place, by its name and with its options.

For example SGD with momentum, Sutskever et al. 2013, eq. 1–2, and Adafactor, which keeps a mean for
each row and each column of g² in place of one for each number: Shazeer & Stern 2018, algorithm 4.

The rate is --lr and the decay --weight_decay, for matrices and embeddings alone; all other options
have torch's defaults. A tuple's numbers are joined by "+". Differs from the papers where torch
does, whose pages state each formula: SGD, Adam and others add the decay to the gradient there.

    python classifier.py --fine-tune-mode full-model --extension torch_optimizer:name=Adafactor
    python classifier.py --lr 0.1 --extension torch_optimizer:name=SGD,momentum=0.9,nesterov=true
    python classifier.py --extension torch_optimizer:name=NAdam,betas=0.9+0.95
"""

import ast
import inspect
from dataclasses import dataclass, field

import torch

from engine.errors import InputError, did_you_mean
from engine.extension import TAKES_OTHERS, Extension, parse_bool

REFUSED = {
    "LBFGS": "it evaluates the loss several times a step, which a run does once",
    "SparseAdam": "it takes sparse gradients alone, and GPT-2's are dense",
}
# Of a run's own flags, or not for training: the ascent, graphs and gradients of the step itself.
NOT_OPTIONS = {"params", "lr", "weight_decay", "maximize", "capturable", "differentiable"}


@dataclass
class TorchOptimizer(Extension):
    """name: a class of torch.optim; its options as they stand in the flag."""

    name: str = "AdamW"
    options: dict[str, str] = field(default_factory=dict, metadata={TAKES_OTHERS: True})

    recordable = True

    def __post_init__(self):
        if self.name in REFUSED:
            raise InputError(f"torch_optimizer: name={self.name}: {REFUSED[self.name]}")
        known = optimizers()
        if self.name not in known:
            meant = did_you_mean(self.name, known)
            raise InputError(
                f"torch_optimizer: name={self.name}: {meant}torch.optim has {', '.join(known)}"
            )
        self.kind = known[self.name]
        defaults = defaults_of(self.kind)
        self.values = {
            name: self._value(name, text, defaults) for name, text in self.options.items()
        }

    @property
    def shardable(self) -> bool:
        """All but one move each number by itself; Adafactor looks at rows and columns."""
        return self.name not in ("Adafactor", "Muon")

    def _value(self, name: str, text: str, defaults: dict):
        if name not in defaults:
            raise InputError(
                f"torch_optimizer: {self.name} has no option {name}: it has "
                f"{', '.join(f'{key}={_shown(value)}' for key, value in defaults.items())}; "
                f"--lr and --weight_decay are flags of the run"
            )
        try:
            return parse_like(text, defaults[name])
        except ValueError as error:
            raise InputError(
                f"torch_optimizer: {name}={text}: expected one like {self.name}'s default, "
                f"{_shown(defaults[name])}"
            ) from error

    def make_optimizer(self, model, lr: float, weight_decay: float):
        trainable = [p for p in model.parameters() if p.requires_grad]
        decays = "weight_decay" in inspect.signature(self.kind).parameters
        if weight_decay and not decays:
            raise InputError(f"torch_optimizer: {self.name} has no decay: give --weight_decay 0")
        decay = {"weight_decay": weight_decay} if decays else {}
        try:
            return self.kind(trainable, lr=lr, **decay, **self.values)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"torch_optimizer: {self.name}: {reason}") from error


def optimizers() -> dict[str, type]:
    """The classes of torch.optim that a run can step with, by name."""
    base = torch.optim.Optimizer
    return {
        name: value
        for name, value in sorted(vars(torch.optim).items())
        if inspect.isclass(value) and issubclass(value, base) and value is not base
        if name not in REFUSED
    }


def defaults_of(kind: type) -> dict:
    """An optimizer's options that a run does not set itself, with torch's defaults."""
    parameters = inspect.signature(kind).parameters
    return {name: p.default for name, p in parameters.items() if name not in NOT_OPTIONS}


def parse_like(text: str, default):
    """An option's value, of the kind of its default; a ValueError for another one."""
    if isinstance(default, tuple):
        parts = text.split("+")
        if len(parts) != len(default):
            raise ValueError(text)
        return tuple(map(parse_like, parts, default))
    if isinstance(default, bool):
        return parse_bool(text)
    if isinstance(default, str):
        return text
    value = _literal(text)
    if default is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(text)
    return value


def _literal(text: str):
    """A number, a truth value, none, or the text itself."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _shown(value) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
