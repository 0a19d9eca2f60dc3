"""Quantization after training: a task's checkpoint as a small file of integers, and what it costs.

    w ≈ s (q − z),   q = ⌊w / s⌉ + z                                                  grid.py

By default z = 0 and s = max|w| / (2^(b−1) − 1): the grid that qat trains for. `--grid asymmetric`
spans min w to max w with all 2^b integers, and `--scale mse` searches the s of the smallest squared
error; both help where there are few bits. With 8 bits each row of a matrix has its scale ("per
channel"; Jacob et al. 2018, eq. 1 with Z = 0), with fewer each group of columns in a row (Yao et
al. 2022, "ZeroQuant", section 4.1). In `--mode dynamic` inputs are rounded too, token by token
(same section), and integers are multiplied by integers. The linears of the layers become integers;
normalisations, biases, positions and a head of the task's own stay in floating point, and so does
the tied embedding, unless --embedding is given.
Adapters of the run (lora, qat) are absorbed first: what they amount to is rounded.

Dev figures before and after are of the same rows; those after are of the file, read again. Then
both models take turns on some of these rows, and their median seconds are compared. Differs from
the paper in that no operations are fused, and in that nothing is distilled.

    python -m programs.quantize --checkpoint runs/sst-…/best.safetensors --bits 8 --mode dynamic
    python -m programs.quantize --quantized runs/sst-…/best-int8-dynamic.safetensors --predict
"""

import json
from pathlib import Path

from engine.errors import InputError, Parser, command
from engine.files import atomic_write

# isort: split

from engine.parallel import Worker, joined_worker
from engine.settings import Settings
from extensions.rounding import UNROUNDED
from programs.quantize.grid import INT8, KINDS, SCALES, Grid
from programs.quantize.job import (
    Job,
    dev_figures,
    listed,
    load_plain,
    load_quantized,
    open_job,
    save_dequantized,
    save_quantized,
    seconds_in_turn,
    task_flags,
)
from programs.quantize.linear import Recipe, quantize_model, tensor_bytes

GROUP_SIZE = 64  # where there are fewer bits than 8


def run(args, own: Settings, worker: Worker) -> None:
    """Round to nearest, or use what was rounded before."""
    job = open_job(args, own, worker)
    if args.quantized:
        print(f"{args.quantized}: {listed(dev_figures(job))}")
        use(args, job)
    else:
        quantize(args, job, lambda recipe: quantize_model(job.model.gpt, recipe))


def quantize(args, job: Job, method) -> None:
    """Quantize the job's model by a method, write it, read it again, and say what that cost."""
    recipe = recipe_of(args)
    recipe.check(job.model.gpt)
    before = {**dev_figures(job), "megabytes": tensor_bytes(job.model) / 1e6}
    print(f"before: {listed(before)}")
    method(recipe)
    save_quantized(args.out, job, recipe)
    job.model = load_quantized(args.out)[0].to(job.worker.device)
    after = {**dev_figures(job), "megabytes": Path(args.out).stat().st_size / 1e6}
    print(f"after: {listed(after)}")
    plain = load_plain(args.checkpoint, job.task)[0].to(job.worker.device).eval()
    rows, (before["seconds"], after["seconds"]) = seconds_in_turn(job, [plain, job.model])
    print(
        f"{rows} dev rows take {before['seconds']:.3f} seconds before, {after['seconds']:.3f} after"
    )
    with atomic_write(args.report) as file:
        flags = {key: value for key, value in vars(args).items() if key != "rest"}
        report = {"before": before, "after": after, "timed_rows": rows, "flags": flags}
        json.dump(report, file, indent=2)
        file.write("\n")
    smaller = before["megabytes"] / after["megabytes"]
    print(f"{args.out} is {smaller:.2f} times smaller; the figures are in {args.report}")
    use(args, job)
    if not args.predict:
        flags = " ".join(["--quantized", args.out, "--predict", *args.rest])
        print(f"next: python -m programs.quantize {flags}")


def use(args, job: Job) -> None:
    """Predict, and write plain weights, as asked for."""
    if args.predict:
        job.task.test(job.args, job.model, job.loaders, job.worker, job.made_by)
    if args.dequantized:
        save_dequantized(args.dequantized, job)
        print(f"next: python {' '.join(job.task.command)} --checkpoint {args.dequantized}")


# -- flags -----------------------------------------------------------------------------------------


def make_parser(doc: str, bits: int):
    """The flags that quantize and gptq share."""
    parser = Parser(
        doc,
        epilog="All other flags are the task's own, as --data_dir, --limit, --batch_size, "
        "--use_gpu and those that name its prediction files.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="a task's best.safetensors")
    parser.add_argument(
        "--bits",
        type=int,
        default=bits,
        help=f"8, 4, 3, 2, or {UNROUNDED}: not rounded; default: {bits}",
    )
    parser.add_argument(
        "--group_size",
        type=int,
        help=f"columns that share a scale, 0: all; default: 0 for 8 bits, {GROUP_SIZE} for fewer",
    )
    parser.add_argument(
        "--grid",
        choices=KINDS,
        default=KINDS[0],
        help="asymmetric: from min to max in all 2^bits integers; default: as far to both sides",
    )
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default=SCALES[0],
        help="max: nothing is cut off, the default; mse: of the smallest squared error",
    )
    parser.add_argument(
        "--mode",
        choices=("weights", "dynamic"),
        default="weights",
        help="dynamic: inputs, too",
    )
    parser.add_argument("--embedding", action="store_true", help="int8 for the tied embedding too")
    parser.add_argument("--out", metavar="FILE", help="default: beside the checkpoint")
    parser.add_argument("--predict", action="store_true", help="also write the task's predictions")
    parser.add_argument(
        "--dequantized",
        metavar="FILE",
        help="also write s q, for the task's --checkpoint",
    )
    parser.set_defaults(quantized=None, report=None)
    return parser


def complete(args, method: str = ""):
    """Fill in what other flags decide, and refuse what makes no sense."""
    if not args.checkpoint:
        return args
    if args.group_size is None:
        args.group_size = GROUP_SIZE if args.bits < INT8 else 0
    recipe_of(args)
    if args.out is None:
        parts = [Path(args.checkpoint).stem, *filter(None, [method])]
        parts += [f"int{args.bits}" if args.bits < UNROUNDED else "unrounded"]
        parts += [f"g{args.group_size}"] * (args.group_size > 0)
        parts += [args.grid] * (args.grid != KINDS[0]) + [args.scale] * (args.scale != SCALES[0])
        parts += ["dynamic"] * (args.mode == "dynamic") + ["embedding"] * args.embedding
        args.out = str(Path(args.checkpoint).with_name(f"{'-'.join(parts)}.safetensors"))
    args.report = f"{args.out}.json"
    return args


def recipe_of(args) -> Recipe:
    grid = Grid(args.bits, args.group_size, args.grid, args.scale)
    return Recipe(grid, args.mode == "dynamic", args.embedding)


def get_args(argv=None):
    parser = make_parser(__doc__, bits=INT8)
    parser.add_argument("--quantized", metavar="FILE", help="use this file of integers")
    args, args.rest = parser.parse_known_args(argv)
    if (args.checkpoint is None) == (args.quantized is None):
        raise InputError(
            "--checkpoint, --quantized: give the one, to quantize, or the other, to use"
        )
    return complete(args)


def start(args, run) -> None:
    """Read the task's own flags, and call `run(args, own, worker)` on this process's device."""
    own = task_flags(args)
    with joined_worker(own.use_gpu) as worker:
        run(args, own, worker)


@command
def main():
    start(get_args(), run)
