"""The core against the plain completion of the starter: same weights, same rows, one run.

    python benchmarks/core.py --model_size FOLDER --data_dir data

Jobs: full-model SST training at batch 8, last-linear-layer training over 10 epochs, decoding the
held-out sonnets, start-up. Peers alternate; the table gives medians, spread and their ratio. The
rows are a seeded sample of SST's training set, as all of it takes hours on a CPU. Results, with the
checkpoint and the hardware named, go to benchmarks/results/.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import classifier
import sonnet_generation
from batches import TokenDataset, make_loader, tokenise
from benchmarks import starter
from benchmarks.timing import alternate, environment, seconds, summary, write_results
from checkpoint import RunFolder
from dataset import read_sentiment, read_sonnets
from models.base_gpt import read_weights
from parallel import Worker
from training import FitOptions, fit
from utils import ROOT, checkpoint_folder, command, load_tokenizer, seed_everything

BATCH_SIZE, NUM_LABELS, DROPOUT, NEW_TOKENS = 8, 5, 0.3, 128
HEAD = {"classifier.weight": "sentiment_head.weight", "classifier.bias": "sentiment_head.bias"}


class Bench:
    """What the jobs share: the checkpoint, its tokenizer, a device and a sample of SST's rows."""

    def __init__(self, args):
        self.args = args
        self.worker = Worker(torch.device("cuda" if args.use_gpu else "cpu"))
        self.tokenizer = load_tokenizer(args.model_size)
        records = read_sentiment(Path(args.data_dir) / "ids-sst-train.csv", NUM_LABELS)
        self.records = random.Random(args.seed).sample(records, min(args.rows, len(records)))
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-core-"))

    def flags(self, mode: str, epochs: int):
        words = ["--fine-tune-mode", mode, "--epochs", str(epochs)]
        flags = classifier.get_args([*words, "--model_size", self.args.model_size])
        flags.num_labels = NUM_LABELS
        return flags

    def ours(self, mode: str):
        return classifier.build_model(self.flags(mode, 1)).to(self.worker.device)

    def theirs(self, mode: str, like):
        """The starter's classifier with the weights of ours."""
        model = starter.StarterSentimentClassifier(like.gpt.config, NUM_LABELS, DROPOUT, mode)
        folder = checkpoint_folder(self.args.model_size)
        starter.load_huggingface(model.gpt, read_weights(folder))
        state = like.state_dict()
        model.load_state_dict({t: state[o] for t, o in HEAD.items()}, strict=False)
        return model.to(self.worker.device)

    def starter_loader(self, rows: int, shuffle: bool = True):
        records = [(r.text, r.label, r.sent_id) for r in self.records[:rows]]
        return starter.sentiment_loader(records, self.tokenizer, BATCH_SIZE, shuffle)

    def our_loader(self, rows: int, shuffle: bool = True):
        records = self.records[:rows]
        sent_ids = [r.sent_id for r in records]
        tokens = tokenise(self.tokenizer, [r.text for r in records], sent_ids, 1024)
        dataset = TokenDataset(tokens, sent_ids, [r.label for r in records])
        return make_loader(dataset, BATCH_SIZE, seed=self.args.seed, shuffle=shuffle)

    def folder(self, flags) -> RunFolder:
        return RunFolder(self.scratch, "sst", "bench", vars(flags))


def same_work(bench: Bench) -> float:
    """Largest difference of the two models' logits on one batch, dropout off."""
    ours = bench.ours("full-model").eval()
    theirs = bench.theirs("full-model", ours).eval()
    batch = starter.to_device(next(iter(bench.starter_loader(BATCH_SIZE))), theirs)
    inputs = batch["token_ids"], batch["attention_mask"]
    with torch.no_grad():
        return float((ours(*inputs) - theirs(*inputs)).abs().max())


def full_model(bench: Bench) -> dict:
    """Seconds for one epoch's training steps over the sample, full-model, batch 8."""
    ours = bench.ours("full-model")
    theirs = bench.theirs("full-model", ours)
    optimizer = starter.StarterAdamW(theirs.parameters(), lr=1e-5)
    rows = len(bench.records)
    starter_loader, our_loader = bench.starter_loader(rows), bench.our_loader(rows)
    flags = bench.flags("full-model", 1)
    options = FitOptions(epochs=1, lr=1e-5, metric="nothing")

    def our_epoch() -> float:
        progress = fit(
            ours,
            our_loader,
            loss_fn=classifier.loss_fn,
            evaluate=lambda model: {"nothing": 0.0},
            options=options,
            folder=bench.folder(flags),
            worker=bench.worker,
            log=lambda message: None,
        )
        return progress.history[-1]["seconds"]  # without writing checkpoints: the starter's too

    def their_epoch() -> float:
        return seconds(lambda: starter.train_epoch(theirs, starter_loader, optimizer))

    times = alternate({"starter": their_epoch, "ours": our_epoch}, bench.args.repeats)
    return {"job": f"full-model training, {rows} sentences", "work": rows, "times": times}


def last_linear_layer(bench: Bench, epochs: int = 10) -> dict:
    """Seconds for training the last layer over 10 epochs, with each side's own evaluations."""
    rows, dev_rows = len(bench.records[:48]), len(bench.records[:16])
    flags = bench.flags("last-linear-layer", epochs)

    def our_training() -> float:
        model = bench.ours("last-linear-layer")
        loaders = {"train": bench.our_loader(rows), "dev": bench.our_loader(dev_rows, False)}
        folder = bench.folder(flags)
        return seconds(lambda: classifier.train(flags, model, loaders, folder, bench.worker))

    def their_training() -> float:
        model = bench.theirs("last-linear-layer", bench.ours("last-linear-layer"))
        head = [p for p in model.parameters() if p.requires_grad]
        optimizer = starter.StarterAdamW(head, lr=1e-3)
        loaders = bench.starter_loader(rows), bench.starter_loader(dev_rows, False)
        return seconds(lambda: starter.fit_sentiment(model, *loaders, optimizer, epochs))

    times = alternate({"starter": their_training, "ours": our_training}, bench.args.repeats)
    job = f"last-linear-layer training, {epochs} epochs of {rows} sentences"
    return {"job": job, "work": rows * epochs, "times": times}


def decoding(bench: Bench) -> dict:
    """Seconds for continuing all held-out sonnets by 128 tokens each."""
    prompts = read_sonnets(Path(bench.args.data_dir) / "sonnets_held_out.txt")[: bench.args.sonnets]
    words = ["--model_size", bench.args.model_size, "--max_new_tokens", str(NEW_TOKENS)]
    flags = sonnet_generation.get_args(words)
    ours = sonnet_generation.build_model(flags).to(bench.worker.device)
    ours.tokenizer.eos_token = None  # every sonnet gets its 128 tokens, on both sides
    theirs = starter.StarterSonnetGPT(ours.gpt.config)
    starter.load_huggingface(theirs.gpt, read_weights(checkpoint_folder(bench.args.model_size)))
    theirs.to(bench.worker.device)

    def their_sonnets():
        for prompt in prompts:
            starter.generate(theirs, ours.tokenizer, prompt.text + "\n", NEW_TOKENS, 1.2, 0.9)

    def our_sonnets() -> float:
        return seconds(lambda: sonnet_generation.complete(ours, prompts, flags))

    our_sonnets()  # warm up; the starter's run is minutes long and needs none
    their_times = [seconds(their_sonnets)]
    times = {"starter": their_times, "ours": [our_sonnets() for _ in range(bench.args.repeats)]}
    job = f"decoding {len(prompts)} sonnets, {NEW_TOKENS} tokens each"
    return {"job": job, "work": NEW_TOKENS * len(prompts), "times": times}


def start_up(bench: Bench) -> dict:
    """Seconds until `classifier.py --help` has answered."""

    def ask() -> float:
        words = [sys.executable, "classifier.py", "--help"]
        return seconds(lambda: subprocess.run(words, cwd=ROOT, capture_output=True, check=True))

    return {"job": "classifier.py --help", "work": 1, "times": {"ours": [ask() for _ in range(7)]}}


def table(results: dict) -> str:
    """Markdown: a row a job, medians (smallest–largest), the ratio starter / ours."""
    lines = ["| job | starter, s | ours, s | ratio |", "|---|---|---|---|"]
    for job in results["jobs"]:
        cells = [_spread(job["seconds"].get(name)) for name in ("starter", "ours")]
        ratio = f"**{job['ratio']:.1f}×**" if "ratio" in job else "–"
        lines.append(f"| {job['job']} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def _spread(times: dict | None) -> str:
    if times is None:
        return "–"
    return f"{times['median']:.2f} ({times['min']:.2f}–{times['max']:.2f})"


def digest(result: dict) -> dict:
    times = {name: summary(values) for name, values in result["times"].items()}
    row = {"job": result["job"], "work": result["work"], "seconds": times}
    if "starter" in times:
        row["ratio"] = times["starter"]["median"] / times["ours"]["median"]
    return row


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_size", default="gpt2", help="random weights serve for timing")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--rows", type=int, default=96, help="sentences of the training sample")
    parser.add_argument("--sonnets", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/core.json")
    args = parser.parse_args()
    seed_everything(args.seed)
    bench = Bench(args)
    difference = same_work(bench)
    print(f"same weights, same batch: logits differ by {difference:.1e}", flush=True)
    jobs = []
    for job in (start_up, full_model, last_linear_layer, decoding):
        jobs.append(digest(job(bench)))
        print(jobs[-1], flush=True)
    results = {
        "checkpoint": Path(args.model_size).name,
        **environment(bench.worker.device),
        "logits_differ_by": difference,
        "jobs": jobs,
    }
    write_results(Path(args.out), results)
    print(table(results))


if __name__ == "__main__":
    main()
