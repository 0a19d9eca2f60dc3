"""What techniques cost: parameters, time and memory, against plain fine-tuning in the same run.

    python benchmarks/extensions.py                        # all four parts, on a GPU by --use_gpu

techniques: each extension on one size, a classifier's training steps. sizes: the larger models with
and without adapters and gradient checkpointing. reading: what the largest of them takes with
adapters if the memory counts from before the checkpoint is read; that file is written for this.
attention: forward and backward of each kind of attention alone, by length. Every measurement has a
process of its own, so that its peak memory is its own; they alternate in rounds. Weights and tokens
are random, which serves for time and memory. Results, with the hardware named, go to
benchmarks/results/extensions.json and extensions.png.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command

# isort: split

import torch

from benchmarks.extension_tables import (
    PLAIN,
    attention_table,
    draw,
    memory_table,
    step_table,
)
from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.timing import alone, environment, forget_peak, seconds, summary, write_results
from config import SIZES
from engine.batches import TokenDataset, forward_tokens, make_loader
from engine.checkpoint import RunFolder
from engine.devices import device_of, peak_mb
from engine.fast.attention import fused_causal_attention
from engine.hub import save_gpt2
from engine.options import FitOptions
from engine.parallel import start_worker
from engine.settings import Settings
from engine.trainer import Trainer
from models.gpt2 import GPT2Model
from modules.attention import causal_attention
from pretrain import SHAPES
from programs.tasks import TASKS

TECHNIQUES = [
    PLAIN,
    "lora",
    "lora:dora=true",
    "qlora",
    "reft",
    "prefix",
    "qat",
    "smart",
    "smart:proximal=1",
    "rdrop",
    "sam",
    "regularise:smoothing=0.1,mixout=0.1",
    "layers:mix=true",
    "layers:use=8",
    "llrd",
    "muon",
    "soap",
    "shampoo",
    "kfac",
    "sophia",
    "lion",
    "schedule_free",
    "torch_optimizer:name=Adafactor",
    "ema",
    "swa",
    "sliding_window",
    "flash_attention",
    "gradient_checkpointing",
]
LARGE = [
    PLAIN,
    "gradient_checkpointing",
    "lora",
    "lora gradient_checkpointing",
    "qlora gradient_checkpointing",
]
LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384]
HEADS, HEAD_SIZE, WINDOW = 4, 64, 256
MOST_SCORES = 2**29  # of (h, t, t): beyond it a dense attention takes more than some 10 GB


# -- one measurement, in a process of its own -----------------------------------------------------


def measure_step(
    size: str,
    flags: str,
    shape: tuple[int, int],
    use_gpu: bool,
    bf16: bool,
    folder: str | None = None,
) -> dict:
    """Parameters, seconds a step and peak MB of training a classifier with extensions.

    shape: b rows of t tokens; flags: extensions with a space between; folder: of a checkpoint, to
    read whose weights is a part of the peak then.
    """
    worker = start_worker(use_gpu)
    settings = {"num_labels": 5, "hidden_dropout_prob": 0.3, "fine_tune_mode": "full-model"}
    settings |= {"gpt_config": asdict(SHAPES[size]), "extension": flags.split()}
    settings |= {"model_size": folder}
    torch.manual_seed(0)
    model = TASKS["sst"].build_model(Settings(settings), pretrained=folder is not None)
    model.to(worker.device)
    if folder is None:
        forget_peak(worker.device)  # of building the model
    (b, t), steps = shape, 3
    tokens = torch.randint(SHAPES[size].vocab_size, (steps * b, t)).tolist()
    names = [str(i) for i in range(len(tokens))]
    data = TokenDataset(tokens, names, [i % 5 for i in range(len(tokens))])
    trainer = Trainer(
        model,
        make_loader(data, b),
        TASKS["sst"].loss_fn,
        FitOptions(epochs=2, lr=1e-5, metric="nothing", bf16=bf16),
        RunFolder("runs", "bench", "extensions", Settings({}), writes=False),
        worker,
        model.extensions,
        forward_tokens,
        lambda message: None,
    )
    trainer.train_epoch()
    trainer.progress.step = 0
    elapsed = seconds(trainer.train_epoch)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    return {"trained": sum(trained), "seconds": elapsed / steps, "peak_mb": peak_mb(worker.device)}


def measure_attention(kind: str, t: int, use_gpu: bool, bf16: bool) -> dict:
    """Seconds of forward and backward, and peak MB, of one head-split batch (1, h, t, k)."""
    worker, attend = start_worker(use_gpu), attentions()[kind]
    dtype = torch.bfloat16 if bf16 else torch.float32
    inputs = [
        torch.randn(1, HEADS, t, HEAD_SIZE, device=worker.device, dtype=dtype, requires_grad=True)
        for _ in range(3)
    ]

    def both():
        attend(*inputs, None, 0.0).sum().backward()

    both()
    repeats = max(1, min(20, 2**21 // (t * t)))
    elapsed = seconds(lambda: [both() for _ in range(repeats)]) / repeats
    return {"seconds": elapsed, "peak_mb": peak_mb(worker.device)}


def attentions() -> dict:
    """Functions with the signature of `causal_attention`, by name."""
    from extensions.flash_attention import flash_attention
    from extensions.sliding_window import windowed_attention

    return {
        "dense": causal_attention,
        "torch SDPA": fused_causal_attention,
        "flash_attention": partial(flash_attention, block=128),
        "sliding_window": partial(windowed_attention, window=WINDOW, sinks=4),
    }


# -- rounds of measurements ----------------------------------------------------------------------


def alternate(work: dict, repeats: int) -> dict[str, dict]:
    """Each key's figures, medians over `repeats` rounds; work: key -> a call without arguments."""
    rounds: dict[str, list[dict]] = {key: [] for key in work}
    for _ in range(repeats):
        for key, call in work.items():
            rounds[key].append(alone(call))
            print(f"{key or 'plain'}: {rounds[key][-1]}", flush=True)
    return {key: _medians(figures) for key, figures in rounds.items()}


def _medians(figures: list[dict]) -> dict:
    middle = {name: statistics.median(f[name] for f in figures) for name in figures[0]}
    return middle | {"seconds": summary([f["seconds"] for f in figures])}


def techniques(args) -> dict:
    work = {
        flags: partial(measure_step, args.size, flags, (8, 64), args.use_gpu, args.bf16)
        for flags in TECHNIQUES
    }
    return {"size": args.size, "b, t": [8, 64], "figures": alternate(work, args.repeats)}


def sizes(args) -> dict:
    work = {
        f"{size}: {flags}": partial(measure_step, size, flags, (8, 64), args.use_gpu, args.bf16)
        for size in args.sizes
        for flags in LARGE
        if args.use_gpu or size != "gpt2-xl" or "lora" in flags  # 25 GB of weights and moments
    }
    return {"b, t": [8, 64], "figures": alternate(work, 1)}


def reading(args) -> dict:
    size, shape = args.sizes[-1], (8, 64)
    with tempfile.TemporaryDirectory() as folder:
        alone(write_random, size, folder)
        work = {
            f"{size}: {flags}": partial(
                measure_step, size, flags, shape, args.use_gpu, args.bf16, folder
            )
            for flags in LARGE
            if "lora gradient_checkpointing" in flags
        }
        return {"b, t": shape, "figures": alternate(work, 1)}


def write_random(size: str, folder: str) -> None:
    save_gpt2(GPT2Model(SHAPES[size]), folder)


def attention(args) -> dict:
    work = {
        f"{kind}: {t}": partial(measure_attention, kind, t, args.use_gpu, args.bf16)
        for t in LENGTHS
        for kind in attentions()
        if kind != "dense" or HEADS * t * t <= MOST_SCORES
    }
    shape = {"heads": HEADS, "head_size": HEAD_SIZE, "window": WINDOW}
    return {**shape, "figures": alternate(work, 1)}


PARTS = {"techniques": techniques, "sizes": sizes, "reading": reading, "attention": attention}
PRINTED = {"reading": memory_table, "attention": attention_table}


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", choices=SHAPES, default="gpt2", help="of the techniques' part")
    large = [size for size in SIZES if size != "gpt2"]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=large)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the techniques' part")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    add_commit_flag(parser)
    parser.add_argument("--out", default="benchmarks/results/extensions.json")
    args = parser.parse_args()
    check_committed(args)
    here = Path(__file__).resolve().parent  # where this file's name hides extensions/
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    path = Path(args.out)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in args.parts:
        device = device_of(args.use_gpu)
        facts = {**environment(device), "bf16": args.bf16}
        results[part] = PARTS[part](args) | facts
        write_results(path, results)
        figures = results[part]["figures"]
        print(PRINTED.get(part, step_table)(figures))
        if part == "attention":
            draw(figures, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
