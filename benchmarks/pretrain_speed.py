"""Pre-training steps by themselves: tokens a second, the share of the GPU's peak, peak memory.

    python benchmarks/pretrain_speed.py --use_gpu --bf16 --minutes 8

Five ways to run the same step of pretrain.py, on random tokens: with all logits at once, in chunks
of positions, each recorded where the device has a recorder; eagerly; compiled; and compiled and
recorded. Every way has a process of its own, so that its memory is its own; they take turns. MFU
counts 6 N + 12 l d t FLOPs a token: Chowdhery et al. 2022 ("PaLM"), appendix B. A size is in the
results when it is done, and none begins that would not end in time.
"""

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command
from engine.parallel import seed_everything, start_worker

# isort: split

import torch

import pretrain
from benchmarks.gpu import Clock
from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.timing import (
    Alone,
    alternate,
    environment,
    forget_peak,
    seconds,
    summary,
    write_results,
)
from engine.batches import next_token_loss
from engine.checkpoint import RunFolder
from engine.devices import peak_mb
from engine.language_model import forward_blocks, loss_fn
from engine.options import FitOptions
from engine.recorder import RECORDERS
from engine.settings import Settings
from engine.throughput import utilization
from engine.trainer import Trainer

VOCABULARY = {"mini": 8192}  # elsewhere GPT-2's own
ROWS = {"mini": 64}  # blocks of a step; elsewhere --batch_size
WAYS = {
    "whole": "all logits at once",
    "chunked": "logits in chunks",
    "eager": "logits in chunks, --eager",
    "compiled": "logits in chunks, --compile --eager",
    "compiled-recorded": "logits in chunks, --compile",
}
WARM_UP = 5  # steps in which kernels are tried, recorded and compiled


class Steps:
    """Training steps of one size, run in one way."""

    def __init__(self, size: str, way: str, args):
        self.args, self.worker = args, start_worker(args.use_gpu)
        seed_everything(args.seed)
        shape = pretrain.SHAPES[size]
        shape = replace(
            shape,
            vocab_size=args.vocab_size or VOCABULARY.get(size, shape.vocab_size),
            max_position_embeddings=max(args.block, shape.max_position_embeddings),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        settings = Settings({"gpt_config": asdict(shape), "extension": args.extension})
        model = pretrain.build_model(settings, pretrained=False).to(self.worker.device).train()
        self.rows = args.batch_size or ROWS.get(size, 16)
        self.batch = random_batch(self.rows, args.block, shape.vocab_size)
        options = {
            "eager": way in ("eager", "compiled"),
            "compile": "default" if way.startswith("compiled") else None,
            "one_shape": True,
        }
        self.trainer = Trainer(
            model,
            [self.batch] * 1000,
            loss_fn=loss_of_logits if way == "whole" else loss_fn,
            options=FitOptions(
                epochs=1, lr=1e-4, metric="", betas=pretrain.BETAS, clip=1.0, bf16=args.bf16,
                **options,
            ),
            folder=RunFolder(tempfile.mkdtemp(), "pretrain", "steps", Settings({})),
            worker=self.worker,
            extensions=model.extensions,
            forward=forward_logits if way == "whole" else forward_blocks,
            log=lambda message: None,
            recorders=RECORDERS,
        )  # fmt: skip
        self._steps(WARM_UP)
        forget_peak(self.worker.device)

    def seconds(self) -> float:
        return seconds(lambda: self._steps(self.args.steps))

    def figures(self, elapsed: list[float]) -> dict:
        """What a row of the table shows, of the seconds of each round."""
        tokens = self.args.steps * self.rows * self.args.block
        rates = [tokens / time for time in elapsed]
        used = utilization(
            self.trainer.model, summary(rates)["median"], self.args.block, self.worker
        )
        rates = {"tokens_per_second": summary(rates), "step_ms": self._ms(elapsed)}
        return {"rows": self.rows, **rates, **used, "peak_mb": peak_mb(self.worker.device)}

    def _ms(self, elapsed: list[float]) -> float:
        return 1000 * summary(elapsed)["median"] / self.args.steps

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.trainer.step([self.batch])
        self.trainer.look_at_losses()


def random_batch(rows: int, t: int, vocab_size: int) -> dict:
    tokens = torch.randint(vocab_size, (rows, t + 1))
    return {
        "token_ids": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "sent_ids": [f"block {i}" for i in range(rows)],
    }


def forward_logits(model, batch: dict):
    return model(batch["token_ids"])


def loss_of_logits(logits, batch: dict):
    return next_token_loss(logits, batch["labels"], reduction="sum")


def measure(size: str, args) -> dict[str, dict]:
    """The figures of each way, alternating."""
    runs: dict[str, Alone] = {}
    try:
        for way in args.ways:
            runs[way] = Alone(Steps, size, way, args)
        timers = {way: lambda run=run: run.ask("seconds") for way, run in runs.items()}
        times = alternate(timers, args.repeats)
        return {way: run.ask("figures", times[way]) for way, run in runs.items()}
    finally:
        for run in runs.values():
            run.close()


def table(results: dict) -> str:
    """Markdown: a row a size and a way."""
    lines = [
        "| size | step | tokens/s | ratio | ms a step | MFU | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, ways in results["sizes"].items():
        first = next(iter(ways.values()))["tokens_per_second"]["median"]
        for way, row in ways.items():
            rate = row["tokens_per_second"]
            spread = f"{rate['median']:,.0f} ({rate['min']:,.0f}–{rate['max']:,.0f})"
            used = f"{100 * row['mfu']:.1f} %" if "mfu" in row else "–"
            lines.append(
                f"| {size}, {row['rows']} × {results['block']} | {WAYS[way]} | {spread} | "
                f"{rate['median'] / first:.2f}× | {row['step_ms']:.1f} | {used} | "
                f"{row['peak_mb']:,.0f} |"
            )
    return "\n".join(lines)


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=pretrain.SHAPES, default=["mini", "gpt2"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, help="default: 64 blocks for mini, else 16")
    parser.add_argument("--vocab_size", type=int, help="default: 8,192 for mini, else GPT-2's")
    parser.add_argument("--steps", type=int, default=20, help="of each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--extension", action="append", default=[], help="such as muon")
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    add_commit_flag(parser)
    parser.add_argument("--out", default="benchmarks/results/pretrain-speed.json")
    return parser.parse_args(argv)


@command
def main():
    args = get_args()
    check_committed(args)
    worker = start_worker(args.use_gpu)  # before anything is made, it says if no GPU is there
    if min(args.steps, args.repeats) < 1:
        raise InputError("--steps, --repeats: expected at least 1")
    clock = Clock(args.minutes)
    results = {
        **{key: getattr(args, key) for key in ("block", "bf16", "extension")},
        **environment(worker.device),
        "sizes": {},
    }
    for size in args.sizes:
        if not clock.may_start():
            break
        results["sizes"][size] = measure(size, args)
        write_results(Path(args.out), results)
    print(table(results))


if __name__ == "__main__":
    main()
