"""Does pre-training pay? gpt2-mini, the same network with random weights, and a bag of words.

    python benchmarks/pretraining_pays.py --data_dir data

Each run is the task's own program, started as a person would start it; its figure is the dev
score of its best epoch (of sonnets the dev perplexity). Both networks try the same learning rates
with the first seed and keep the better one. `--jobs` runs go on at a time, each with its share of
the cores. The results file keeps every run: what is in it is not run again, so that an interrupted
study goes on where it stopped.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import environment, write_results
from dataset import read_pairs, read_sentiment
from models.gpt2 import GPT2Model
from utils import BUNDLED, ROOT, InputError, command, load_tokenizer

STARTS = ("random weights", "gpt2-mini")
BAG = "bag of words"


class Task:
    """A program, its flags, and where its figure stands in metrics.jsonl."""

    def __init__(self, words: str, metric: str = "dev_acc", best=max):
        self.words, self.metric, self.best = words.split(), metric, best


TASKS = {
    "sst": Task(
        "classifier.py --fine-tune-mode full-model --dataset sst --batch_size 32 --epochs 4"
    ),
    "cfimdb": Task("classifier.py --fine-tune-mode full-model --dataset cfimdb --epochs 2"),
    "paraphrase": Task("paraphrase_detection.py --batch_size 32 --epochs 2"),
    "sonnet": Task(
        "sonnet_generation.py --epochs 12 --patience 0 --max_new_tokens 1", "dev_perplexity", min
    ),
}


def random_folder(seed: int) -> str:
    """gpt2-mini's shape and tokenizer with weights as before pre-training."""
    folder = Path(tempfile.mkdtemp(prefix="bench-random-"))
    config = GPT2Model.from_pretrained("gpt2-mini").config
    tokenizer = load_tokenizer("gpt2-mini")
    torch.manual_seed(seed)
    GPT2Model(replace(config)).save_pretrained(folder, end_token=tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    return str(folder)


def fine_tune(args, name: str, start: str, *, seed: int, lr: float) -> float:
    """The best dev figure of one run of a task's program."""
    task = TASKS[name]
    model = random_folder(seed) if start == "random weights" else start
    with tempfile.TemporaryDirectory(prefix="bench-pays-") as folder:
        words = [sys.executable, *task.words, "--model_size", model, "--data_dir", args.data_dir]
        words += ["--seed", str(seed), "--lr", str(lr), "--runs_dir", folder]
        words += ["--schedule", "linear", "--warmup", "0.1", "--clip", "1"]
        words += ["--bf16"] * args.bf16 + ["--use_gpu"] * args.use_gpu
        words += ["--limit", str(args.limit)] if args.limit else []
        words += output_flags(name, folder)
        share = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // args.jobs, 1))}
        env = os.environ | share
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=env)
        [path] = Path(folder).glob("*/metrics.jsonl")
        lines = path.read_text(encoding="utf-8").splitlines()
        return task.best(json.loads(line)[task.metric] for line in lines)


def output_flags(name: str, folder: str) -> list[str]:
    """Predictions of a study go beside its checkpoints, not into predictions/."""
    names = {"paraphrase": ("para_dev_out", "para_test_out")}
    names["sonnet"] = ("dev_sonnet_out", "sonnet_out")
    flags = names.get(name, ("dev_out", "test_out"))
    return [word for flag in flags for word in (f"--{flag}", f"{folder}/{flag}")]


def bag_of_words(args, name: str) -> float:
    """Dev accuracy of a logistic regression on word counts; of pairs, on min(a, b) and |a − b|."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counts, data = CountVectorizer(token_pattern=r"(?u)\S+"), Path(args.data_dir)
    if name == "paraphrase":
        files = [
            read_pairs(data / f"quora-{split}.csv", labelled=True) for split in ("train", "dev")
        ]
        splits = [file.records[: args.limit] for file in files]
        counts.fit([text for r in splits[0] for text in (r.sentence1, r.sentence2)])

        def features(records):
            first, second = (
                counts.transform([getattr(r, f"sentence{i}") for r in records]) for i in (1, 2)
            )
            return hstack([first.minimum(second), abs(first - second)])

    else:
        labels = {"sst": 5, "cfimdb": 2}[name]
        paths = [data / f"ids-{name}-{split}.csv" for split in ("train", "dev")]
        splits = [read_sentiment(path, labels)[: args.limit] for path in paths]
        counts.fit([r.text for r in splits[0]])

        def features(records):
            return counts.transform([r.text for r in records])

    x, y = zip(*((features(rows), [r.label for r in rows]) for rows in splits), strict=True)
    return float(LogisticRegression(max_iter=2000).fit(x[0], y[0]).score(x[1], y[1]))


class Study:
    """The runs so far, on disk after each."""

    def __init__(self, args):
        self.args, self.path, self.lock = args, Path(args.out), threading.Lock()
        settings = {"limit": args.limit, "bf16": args.bf16, "checkpoint": fingerprint()}
        self.results = {**settings, "runs": {}}
        if self.path.exists():
            self.results |= json.loads(self.path.read_text(encoding="utf-8"))
            unlike = [name for name in settings if self.results.get(name) != settings[name]]
            if unlike:
                raise InputError(
                    f"{self.path}: made with another {', '.join(unlike)}: give another --out"
                )

    def figure(self, key: str, work) -> float:
        """The figure of a run, done now if it was not before."""
        if key not in self.results["runs"]:
            value = work()
            with self.lock:
                self.results["runs"][key] = value
                self.results |= environment(torch.device("cuda" if self.args.use_gpu else "cpu"))
                self.results["jobs"] = self.args.jobs
                write_results(self.path, self.results)
        print(f"{key}: {self.results['runs'][key]:.4f}", flush=True)
        return self.results["runs"][key]

    def run(self) -> None:
        """All runs of all tasks."""
        with ThreadPoolExecutor(self.args.jobs) as pool:
            work = [
                pool.submit(self.run_task, name, start)
                for name in self.args.tasks
                for start in (BAG, *STARTS)
            ]
            for part in work:
                part.result()

    def run_task(self, name: str, start: str) -> None:
        """One task from one start: all rates with the first seed, the better with the others."""
        if start == BAG:
            if name != "sonnet":
                self.figure(f"{name}, {BAG}", lambda: bag_of_words(self.args, name))
            return
        first, *others = self.args.seeds
        tried = {lr: self._fine_tune(name, start, first, lr) for lr in self.args.lrs}
        lr = TASKS[name].best(tried, key=tried.get)
        for seed in others:
            self._fine_tune(name, start, seed, lr)

    def _fine_tune(self, name: str, start: str, seed: int, lr: float) -> float:
        key = f"{name}, {start}, lr {lr:g}, seed {seed}"
        return self.figure(key, lambda: fine_tune(self.args, name, start, seed=seed, lr=lr))


def fingerprint() -> str:
    """By which figures of one gpt2-mini are told from those of another."""
    weights = (BUNDLED["gpt2-mini"] / "model.safetensors").read_bytes()
    return f"gpt2-mini {hashlib.sha256(weights).hexdigest()[:12]}"


def scores(runs: dict[str, float], name: str, start: str) -> tuple[str, list[float]]:
    """The learning rate that was kept, and its figures, one a seed."""
    by_rate: dict[str, list[float]] = {}
    for key, value in runs.items():
        task, who, *rest = key.split(", ")
        if (task, who) == (name, start):
            by_rate.setdefault(rest[0] if rest else "", []).append(value)
    first = {rate: values[0] for rate, values in by_rate.items()}
    rate = TASKS[name].best(first, key=first.get)
    return rate, by_rate[rate]


def table(results: dict) -> str:
    """Markdown: a row a task, mean ± standard deviation over the seeds."""
    lines = ["| task | bag of words | random weights | gpt2-mini |", "|---|---|---|---|"]
    for name, task in TASKS.items():
        cells = []
        for start in (BAG, *STARTS):
            try:
                _, values = scores(results["runs"], name, start)
            except ValueError:
                cells.append("–")
                continue
            digits = 3 if task.metric == "dev_acc" else 1
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        lines.append(f"| {name}, {task.metric.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--lrs", nargs="+", type=float, default=[3e-4, 1e-3])
    parser.add_argument("--limit", type=int, help="first N rows of each file")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", default="benchmarks/results/pretraining_pays.json")
    args = parser.parse_args()
    args.data_dir = str(Path(args.data_dir).resolve())
    if not BUNDLED["gpt2-mini"].is_dir():
        raise InputError(f"{BUNDLED['gpt2-mini']}: not there: train it by pretrain.py first")
    study = Study(args)
    study.run()
    print(table(study.results))


if __name__ == "__main__":
    main()
