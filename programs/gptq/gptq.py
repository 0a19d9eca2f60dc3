"""GPTQ: a task's checkpoint becomes integers that do, on a text, what its weights did.

    argmin_Ŵ ‖W X − Ŵ X‖²                                     Frantar et al. 2023 ("OPTQ"), eq. 1

X are the inputs of a linear for the tokens of a calibration text, and Ŵ its integers times scales:
rounding.py has the algorithm. Layers are rounded from the first to the last, on what the
rounded ones before them make of the text.

Frantar et al. 2023, "OPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", section 4. Differs from the paper in that a linear sees what the rounded ones before
it in its own layer make of the text, too, where there the six of a layer are rounded at once; and
in the text, which by default is the task's training rows. The code published with the paper has
an asymmetric grid by default; here it takes `--grid asymmetric`.

    python -m programs.gptq --checkpoint runs/sonnet-…/best.safetensors --bits 4 --group_size 64
    python -m programs.gptq --checkpoint runs/sst-…/best.safetensors --calibration text.txt
    python -m programs.gptq --checkpoint BEST --bits 3 --grid asymmetric --scale mse

Finished layers are kept in a folder beside --out until all are: --resume goes on from there. What
is written, and how it is used, is as for quantize.py.
"""

import contextlib
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import InputError, command

# isort: split

import torch
from torch import nn
from tqdm import tqdm

from engine.batches import make_loader, to_device
from engine.checkpoint import load_tree, save_tree
from engine.devices import widest_float
from engine.flags import check_range
from engine.parallel import Worker
from engine.settings import Settings
from programs.gptq.calibration import calibration
from programs.gptq.rounding import Hessian, Options, best_rows
from programs.quantize.grid import Rounded
from programs.quantize.job import open_job
from programs.quantize.linear import LINEARS, Recipe
from programs.quantize.quantize import complete, make_parser, quantize, recipe_of, start

# -- a model ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def only(gpt, layer):
    """Make `gpt.encode` run one layer alone: with all that techniques may have put around it."""
    layers, gpt.gpt_layers = gpt.gpt_layers, nn.ModuleList([layer])
    try:
        yield
    finally:
        gpt.gpt_layers = layers


def run_layer(gpt, layer, hidden: list, masks: list) -> list:
    """Each batch (b, t, d) through the layer."""
    with only(gpt, layer):
        return [gpt.encode(x, mask) for x, mask in zip(hidden, masks, strict=True)]


def hessian_of(gpt, layer, name: str, hidden: list, masks: list) -> torch.Tensor:
    """H of a linear's inputs, padding left out."""
    linear = layer.get_submodule(name)
    hessian = Hessian(linear.weight.shape[1], linear.weight.device)
    with only(gpt, layer):
        for x, mask in zip(hidden, masks, strict=True):
            real = mask.bool()
            hook = linear.register_forward_pre_hook(
                lambda _, inputs, real=real: hessian.add(inputs[0][real].float())
            )
            try:
                gpt.encode(x, mask)
            finally:
                hook.remove()
    return hessian.matrix


@dataclass
class Parts:
    """The finished layers of a run, on disk until all are there."""

    folder: Path
    key: str  # of all that decides the result
    errors: list[dict] = field(default_factory=list)

    def start(self, resume: bool) -> None:
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif not self.path(0).exists():
            raise InputError(
                f"--resume: no {self.path(0)}: give the flags of the run to go on with, or leave "
                f"--resume out"
            )

    def path(self, index: int) -> Path:
        return self.folder / f"layer-{index}.safetensors"

    def load(self, index: int, layer, recipe: Recipe) -> bool:
        """Fill a layer from its part, if that is there."""
        if not self.path(index).exists():
            return False
        tree = load_tree(self.path(index))
        if tree["key"] != self.key:
            raise InputError(
                f"--resume: {self.path(index)}: of a run with other flags or texts: leave --resume "
                f"out"
            )
        for name, state in tree["linears"].items():
            recipe.replace(layer, name).load_state_dict(state)
        self.errors.append(tree["errors"])
        return True

    def save(self, index: int, layer, errors: dict) -> None:
        names = [name for names in LINEARS for name in names]
        states = {name: layer.get_submodule(name).state_dict() for name in names}
        save_tree(self.path(index), {"key": self.key, "linears": states, "errors": errors})
        self.errors.append(errors)


@torch.no_grad()
def quantize_layers(model, batches: list, recipe: Recipe, options: Options, parts: Parts) -> None:
    """Round the layers from the first to the last, each on what those before it make of a text."""
    gpt = model.gpt
    if recipe.embedding:
        recipe.replace_embedding(gpt, empty=False)
    hidden = [gpt.embed(batch["token_ids"]) for batch in batches]
    masks = [batch["attention_mask"] for batch in batches]
    layers = list(gpt.gpt_layers) if recipe.rounds else []
    for index, layer in enumerate(tqdm(layers, desc="gptq", leave=False, disable=None)):
        if not parts.load(index, layer, recipe):
            sums = {"gptq": 0.0, "nearest": 0.0}
            for names in LINEARS:
                errors = quantize_linears(gpt, layer, names, hidden, masks, recipe, options)
                sums = {key: sums[key] + errors[key] for key in sums}
            parts.save(index, layer, sums)
        if layer is not layers[-1]:
            hidden = run_layer(gpt, layer, hidden, masks)


def quantize_linears(gpt, layer, names, hidden, masks, recipe: Recipe, options: Options) -> dict:
    """Linears that read the same input, as the rows of one matrix."""
    hessian = hessian_of(gpt, layer, names[0], hidden, masks)
    weights = [layer.get_submodule(name).weight for name in names]
    rounded, errors = best_rows(torch.cat(weights), hessian, recipe.grid, options)
    rows = [len(weight) for weight in weights]
    tensors = (rounded.integers, rounded.scale, rounded.zero_point)
    pieces = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    for name, piece in zip(names, pieces, strict=True):
        recipe.replace(layer, name, Rounded(*piece))
    return errors


# -- the program -----------------------------------------------------------------------------------


def run(args, own: Settings, worker: Worker) -> None:
    """Calibrate and round; then all that quantize does with the result."""
    if widest_float(worker.device) != torch.float64:
        raise InputError("--use_gpu: gptq needs float64, which this GPU lacks: leave it out")
    job = open_job(args, own, worker)
    texts = calibration(args, job)
    options = Options(args.block, args.damping, args.act_order)
    batch_size = job.args.batch_size
    key = run_key(args.checkpoint, recipe_of(args), options, texts.fingerprint(), batch_size)
    parts = Parts(Path(f"{args.out}.parts"), key)

    def method(recipe: Recipe) -> None:
        parts.start(args.resume)
        loader = make_loader(texts, job.args.batch_size)
        batches = [to_device(batch, worker.device) for batch in loader]
        print(f"{sum(texts.lengths)} tokens to calibrate on; --resume goes on from {parts.folder}")
        quantize_layers(job.model, batches, recipe, options, parts)
        sums = {key: sum(each[key] for each in parts.errors) for key in ("gptq", "nearest")}
        if sums["nearest"]:
            share = sums["gptq"] / sums["nearest"]
            print(f"squared error in the layers' outputs: {share:.3f} of rounding to nearest's")

    quantize(args, job, method)
    shutil.rmtree(parts.folder, ignore_errors=True)


def run_key(checkpoint, *decisive) -> str:
    """A hash of the checkpoint's bytes and of all else that decides the result."""
    with open(checkpoint, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(repr((content, *decisive)).encode()).hexdigest()


def get_args(argv=None):
    parser = make_parser(__doc__, bits=4)
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="FILE",
        help="UTF-8 text, also .xz or .gz; default: training rows of the task",
    )
    parser.add_argument("--calibration_tokens", type=int, default=32768, help="approximate number")
    parser.add_argument("--damping", type=float, default=0.01, help="share of H's mean diagonal")
    parser.add_argument("--block", type=int, default=128, help="columns that are updated together")
    parser.add_argument("--act_order", action="store_true", help="columns of large inputs first")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    args, args.rest = parser.parse_known_args(argv)
    for name in ("calibration_tokens", "block"):
        check_range(args, name, 1)
    check_range(args, "damping", 0)
    if args.checkpoint is None:
        raise InputError("--checkpoint: not given: name a task's best.safetensors")
    return complete(args, "gptq")


@command
def main():
    start(get_args(), run)
