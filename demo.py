"""See it work in minutes, without network: `make demo`.

gpt2-mini, the small GPT-2 that this project pre-trained and brings along, is fine-tuned by the same
programs as GPT-2 itself: it learns sentiment (SST), then to complete sonnets, and shows one.
The course's data are used if they are in data/, else data/sample. No figure here is GPT-2's.
"""

import shlex
import sys
from collections import Counter
from pathlib import Path

from engine.children import start_child
from engine.errors import Parser, command
from engine.files import ROOT

# isort: split

from engine.records import NUM_LABELS, data_file, read_sentiment, read_sonnets

OUT = Path("runs/demo")
MODEL = ["--model_size", "gpt2-mini", "--schedule", "linear", "--warmup", "0.1"]
SENTIMENT = ["--dataset", "sst", "--fine-tune-mode", "full-model"]
SONNETS = ["--lr", "5e-4", "--temperature", "0.8", "--max_new_tokens", "160"]
# For three minutes at most on two CPU cores.
COURSE = {
    "sst": ["--epochs", "1", "--batch_size", "32", "--lr", "1e-3"],
    "sonnet": ["--epochs", "3"],
}
SAMPLE = {"sst": ["--epochs", "5", "--lr", "5e-4"], "sonnet": ["--epochs", "5"]}


def run(program: str, data: Path, *flags: str) -> None:
    """Run a task's program as a person would; all of its outputs go to runs/demo."""
    words = [program, *MODEL, *flags, "--data_dir", str(data), "--runs_dir", str(OUT)]
    print("\npython", shlex.join(words), flush=True)
    code = start_child(words, cwd=ROOT).wait()
    if code:
        sys.exit(code)


def majority_accuracy(data: Path) -> float:
    """Dev accuracy on SST of always saying the training set's most frequent class."""
    training, dev = (
        read_sentiment(ROOT / data / data_file("sst", split), NUM_LABELS["sst"])
        for split in ("train", "dev")
    )
    [(label, _)] = Counter(record.label for record in training).most_common(1)
    return sum(record.label == label for record in dev) / len(dev)


@command
def main():
    Parser(__doc__).parse_args()
    data, flags = Path("data"), COURSE
    if not (ROOT / data / data_file("sst", "train")).exists():
        data, flags = data / "sample", SAMPLE
    outputs = {name: str(OUT / f"{name}.txt") for name in ("dev_sonnet_out", "sonnet_out")}
    print("gpt2-mini, this project's own small GPT-2 (pretrained/gpt2-mini), learns sentiment ...")
    files = [f"--{split}_out={OUT / f'sst-{split}-out.csv'}" for split in ("dev", "test")]
    run("classifier.py", data, *SENTIMENT, *flags["sst"], *files)
    print(f"majority-class baseline: dev acc :: {majority_accuracy(data):.3f}")
    print("\n... and sonnets")
    files = [f"--{flag}={path}" for flag, path in outputs.items()]
    run("sonnet_generation.py", data, *SONNETS, *flags["sonnet"], *files)
    first = read_sonnets(ROOT / outputs["dev_sonnet_out"])[0]
    print("\nThe first of them: three lines are given, the others are gpt2-mini's")
    print(f"\n{first.text}")


if __name__ == "__main__":
    main()
