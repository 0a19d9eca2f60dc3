"""Pre-training: the project's GPT-2 and AdamW against transformers' GPT-2 and torch's AdamW.

    python benchmarks/pretrain.py --text FILE… --valid FILE

Same initial weights, same batches, same hyper-parameters; the runs alternate. The table gives
tokens a second (medians, smallest–largest) and their ratio; the learning curves go along. Results,
with the hardware named, go to benchmarks/results/pretrain.json and pretrain.png.
"""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command
from engine.fast.gpt2 import accelerate
from engine.hub import load_gpt2, load_tokenizer, save_gpt2
from engine.parallel import seed_everything
from engine.plots import picture

# isort: split

import torch
from torch.nn import functional as F

import pretrain
from benchmarks.provenance import add_commit_flag, check_committed
from benchmarks.timing import alternate, environment, seconds, summary, write_results
from engine.batches import to_device
from engine.checkpoint import RunFolder
from engine.corpus import TokenBlocks
from engine.devices import device_of
from engine.language_model import forward_blocks, loss_fn
from engine.options import FitOptions
from engine.parallel import Worker
from engine.settings import Settings
from engine.token_files import prepare_data
from engine.training import fit

PEERS = {"transformers": "transformers, torch.optim.AdamW (fused)", "ours": "this project"}


class Bench:
    """The text as blocks, the common initial weights, and a run of each peer."""

    def __init__(self, args):
        self.args = args
        self.worker = Worker(device_of(args.use_gpu))
        argv = ["--text", *args.text, "--valid", *args.valid, "--out", "unused"]
        argv += ["--size", args.size]
        argv += ["--block", str(args.block), "--batch_size", str(args.batch_size)]
        argv += ["--steps", str(args.steps), "--eval_every", str(args.steps // args.points)]
        argv += ["--lr", str(args.lr), "--schedule", "constant", "--warmup", "0"]
        argv += ["--weight_decay", "0"]  # torch decays before the step, ours after it
        self.flags = pretrain.get_args(argv)
        self.data = prepare_data(self.flags, self.worker)
        shape = pretrain.shape_of(self.flags, len(load_tokenizer(str(self.data))))
        self.flags = self.flags.replace(gpt_config=asdict(shape))
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-pretrain-"))
        torch.manual_seed(args.seed)
        save_gpt2(pretrain.build_model(self.flags).gpt, self.scratch / "start")
        self.curves: dict[str, list[float]] = {}

    def loader(self):
        return pretrain.build_loaders(self.flags, self.data, self.worker)["train"]

    def ours(self) -> float:
        """Seconds of training through `fit`, as pretrain.py does it, without its checkpoints."""
        model = pretrain.build_model(self.flags)
        model.gpt = load_gpt2(str(self.scratch / "start"))
        accelerate(model)
        progress = fit(
            model.to(self.worker.device),
            self.loader(),
            loss_fn=loss_fn,
            evaluate=lambda model: {"nothing": 0.0},
            options=FitOptions(
                epochs=self.args.points,
                lr=self.args.lr,
                metric="nothing",
                betas=pretrain.BETAS,
                clip=1.0,
                bf16=self.args.bf16,
            ),
            folder=RunFolder(self.scratch, "pretrain", "bench", Settings({})),
            worker=self.worker,
            forward=forward_blocks,
            log=lambda message: None,
        )
        self.curves["ours"] = [record["train_loss"] for record in progress.history]
        return sum(record["seconds"] for record in progress.history)

    def transformers(self) -> float:
        """Seconds of a plain loop over the same batches."""
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(self.scratch / "start", dtype=torch.float32)
        model.to(self.worker.device).train()
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.args.lr,
            betas=pretrain.BETAS,
            eps=1e-6,
            weight_decay=0.0,
            fused=True,
        )
        loader, curve = self.loader(), []

        def epoch(number: int) -> None:
            loader.batch_sampler.set_epoch(number)
            total = 0.0
            for batch in loader:
                batch = to_device(batch, self.worker.device)
                optimizer.zero_grad()
                with torch.autocast(self.worker.device.type, torch.bfloat16, self.args.bf16):
                    logits = model(input_ids=batch["token_ids"]).logits
                    loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                total += loss.item()
            curve.append(total / len(loader))

        elapsed = sum(seconds(lambda n=n: epoch(n)) for n in range(self.args.points))
        self.curves["transformers"] = curve
        return elapsed


def table(results: dict) -> str:
    """Markdown: a row a peer."""
    lines = ["| peer | tokens/s | ratio | last loss |", "|---|---|---|---|"]
    for name, words in PEERS.items():
        rate, loss = results["tokens_per_second"][name], results["curves"][name][-1]
        ratio = rate["median"] / results["tokens_per_second"]["transformers"]["median"]
        spread = f"{rate['median']:,.0f} ({rate['min']:,.0f}–{rate['max']:,.0f})"
        lines.append(f"| {words} | {spread} | {ratio:.2f}× | {loss:.4f} |")
    return "\n".join(lines)


def draw(results: dict, path) -> None:
    """The two learning curves by tokens read."""
    with picture(path, 6, 3.5) as figure:
        axes = figure.subplots()
        for name, style in (("transformers", "s--"), ("ours", "o-")):
            curve = results["curves"][name]
            tokens = [results["tokens"] * (i + 1) / len(curve) for i in range(len(curve))]
            axes.plot(tokens, curve, style, label=PEERS[name], alpha=0.8)
        axes.set(xlabel="tokens", ylabel="training loss (nats a token)")
        axes.legend()


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--valid", nargs="+", required=True)
    parser.add_argument("--size", choices=pretrain.SHAPES, default="mini")
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="of each run")
    parser.add_argument("--points", type=int, default=5, help="of the learning curve")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    add_commit_flag(parser)
    parser.add_argument("--out", default="benchmarks/results/pretrain.json")
    args = parser.parse_args()
    check_committed(args)
    seed_everything(args.seed)
    bench = Bench(args)
    times = alternate({"transformers": bench.transformers, "ours": bench.ours}, args.repeats)
    tokens = args.steps * args.batch_size * args.block
    results = {
        "size": args.size,
        "bf16": args.bf16,
        "text": TokenBlocks(bench.data / "train.bin", args.block).facts["sha256"][:12],
        **environment(bench.worker.device),
        "tokens": tokens,
        "tokens_per_second": {
            name: summary([tokens / elapsed for elapsed in values])
            for name, values in times.items()
        },
        "curves": bench.curves,
    }
    write_results(Path(args.out), results)
    draw(results, Path(args.out).with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
