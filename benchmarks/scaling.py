"""How the cost of a training step grows: with length, batch size and model size; fitted exponents.

    python benchmarks/scaling.py                            # on a GPU: --use_gpu --bf16

    y = a + c xᵖ        y seconds or bytes, x positions, rows or parameters; p by least squares

The constant a is what does not grow: the optimizer's step, the weights and their moments. Ours and
the starter's classifier are trained on random tokens, each point in a process of its own. Results,
with the hardware named, go to benchmarks/results/scaling.json and scaling.png after each point: an
interrupted run goes on where it stopped.
"""

import json
import statistics
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command

# isort: split

import torch

from benchmarks import starter
from benchmarks.counts import parameters
from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.scaling_curves import PEERS, draw, fits, table
from benchmarks.timing import alone, environment, forget_peak, seconds, write_results
from config import GPT2Config
from engine.batches import TokenDataset, forward_tokens, make_loader
from engine.checkpoint import RunFolder
from engine.devices import device_of, device_type, has_bf16_units, peak_mb
from engine.options import FitOptions
from engine.parallel import start_worker
from engine.settings import Settings
from engine.trainer import Trainer
from pretrain import SHAPES
from programs.tasks import TASKS

LABELS, DROPOUT, RATE = 5, 0.3, 1e-5
STEPS = 3


# -- one point, in a process of its own -----------------------------------------------------------


def measure(peer: str, size: str, shape: tuple[int, int], use_gpu: bool, bf16: bool) -> dict:
    """The median of three steps' seconds, and peak MB, of training on b rows of t tokens."""
    device = device_of(use_gpu)
    torch.manual_seed(0)
    step = {"ours": our_step, "starter": starter_step}[peer](SHAPES[size], shape, device, bf16)
    forget_peak(device)
    step()
    return {
        "seconds": statistics.median(seconds(step) for _ in range(STEPS)),
        "peak_mb": peak_mb(device),
    }


def our_step(config: GPT2Config, shape: tuple[int, int], device, bf16: bool):
    """One step of `fit`, the first batch again each time."""
    settings = {"num_labels": LABELS, "hidden_dropout_prob": DROPOUT, "extension": []}
    settings |= {"fine_tune_mode": "full-model", "gpt_config": asdict(config)}
    model = TASKS["sst"].build_model(Settings(settings), pretrained=False).to(device)
    tokens = random_tokens(config, shape).tolist()
    data = TokenDataset(tokens, [str(i) for i in range(shape[0])], [0] * shape[0])
    run = Trainer(
        model,
        make_loader(data, shape[0]),
        TASKS["sst"].loss_fn,
        FitOptions(epochs=1, lr=RATE, metric="nothing", bf16=bf16),
        RunFolder("runs", "bench", "scaling", Settings({}), writes=False),
        start_worker(device.type != "cpu"),
        extensions=[],
        forward=forward_tokens,
        log=lambda message: None,
    )

    def step():
        run.progress.step = 0
        run.train_epoch()
        if run.gradients.micro_batch:
            raise torch.OutOfMemoryError(f"{run.gradients.micro_batch} rows at a time only")

    return step


def starter_step(config: GPT2Config, shape: tuple[int, int], device, bf16: bool):
    """One step of the starter, in float32 always."""
    model = starter.StarterSentimentClassifier(config, LABELS, DROPOUT).to(device)
    optimizer = starter.StarterAdamW(model.parameters(), lr=RATE)
    tokens = random_tokens(config, shape)
    labels = torch.zeros(shape[0], dtype=torch.long)
    batch = {"token_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    model.train()
    return lambda: starter.train_step(model, batch, optimizer)


def random_tokens(config: GPT2Config, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape)


# -- all points -----------------------------------------------------------------------------------


def points(args) -> dict[str, dict]:
    """Name of a point -> its part, its x, the size and the shape (b, t)."""
    named = {}
    for peer in args.peers:
        for t in args.lengths:
            shape = (args.rows, t)
            named[f"{peer}, length {t}"] = {"x": t, "size": args.size, "shape": shape}
        for b in args.batches:
            shape = (b, args.positions)
            named[f"{peer}, batch {b}"] = {"x": b, "size": args.size, "shape": shape}
        for size in args.sizes:
            x, shape = parameters(SHAPES[size]), (args.rows, args.positions)
            named[f"{peer}, size {size}"] = {"x": x, "size": size, "shape": shape}
    return named


def run(args, results: dict, log) -> None:
    """Measure each point that the results lack."""
    for name, point in points(args).items():
        if name in results["points"]:
            continue
        peer = name.split(",")[0]
        try:
            figures = alone(measure, peer, point["size"], point["shape"], args.use_gpu, args.bf16)
        except (torch.OutOfMemoryError, MemoryError, BrokenProcessPool):
            log(f"{name}: memory does not suffice")
            continue
        results["points"][name] = {"x": point["x"], **figures}
        results["fits"] = fits(results["points"])
        write_results(Path(args.out), results)
        log(f"{name}: {figures['seconds']:.3g} s, {figures['peak_mb']:,.0f} MB")


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--size", choices=SHAPES, default="gpt2", help="of length and batch")
    parser.add_argument("--lengths", nargs="*", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--batches", nargs="*", type=int, help="rows; default: 1 to 32, GPU 256")
    parser.add_argument("--sizes", nargs="*", choices=SHAPES, help="default: mini to large, GPU xl")
    parser.add_argument("--rows", type=int, help="of length and size; default: 2, on GPUs 8")
    parser.add_argument("--positions", type=int, default=64, help="of batch and size")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="of ours")
    parser.add_argument("--force", action="store_true", help="begin the file anew")
    add_commit_flag(parser)
    parser.add_argument("--out", default="benchmarks/results/scaling.json")
    args = parser.parse_args(argv)
    if args.bf16 and not has_bf16_units(device_type(args.use_gpu)):
        raise InputError("--bf16: this machine has no units for it: leave it out")
    if args.batches is None:
        args.batches = [1, 2, 4, 8, 16, 32] + [64, 128, 256] * args.use_gpu
    if args.sizes is None:
        args.sizes = ["mini", "gpt2", "gpt2-medium", "gpt2-large"] + ["gpt2-xl"] * args.use_gpu
    args.rows = args.rows or (8 if args.use_gpu else 2)
    return args


def load(args) -> dict:
    """The file's results, if it holds any of these very settings."""
    kept = ("size", "rows", "positions", "bf16")
    settings = {name: getattr(args, name) for name in kept}
    facts = environment(start_worker(args.use_gpu).device)
    path = Path(args.out)
    if path.exists() and not args.force:
        before = json.loads(path.read_text(encoding="utf-8"))
        if (before["settings"], before["hardware"]) != (settings, facts["hardware"]):
            raise InputError(
                f"{path}: measured on {before['hardware']} with {before['settings']}: give "
                f"another --out, or --force to begin anew"
            )
        return before
    return {**facts, "settings": settings, "points": {}, "fits": {}}


@command
def main():
    args = get_args()
    check_committed(args)
    results = load(args)
    run(args, results, lambda message: print(message, flush=True))
    draw(results, Path(args.out).with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
