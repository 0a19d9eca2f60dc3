"""See it work in minutes, without network: `make demo`.

Fine-tunes gpt2-mini, the small GPT-2 that this project pre-trained and brings along, for sentiment
as `classifier.py` does with the real GPT-2, and writes the predictions. It uses the course's data
if they are in data/, else the project's own data/sample. Its figures are gpt2-mini's, not GPT-2's.
"""

import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

from utils import ROOT, Parser, command

# isort: split

from classifier import NUM_LABELS
from dataset import read_sentiment

# What two CPU cores do in about three minutes; the sample takes less than one.
COURSE = {
    "sst": ["--epochs", "1", "--batch_size", "16"],
    "cfimdb": ["--epochs", "2", "--limit", "500"],
}
SAMPLE = {"sst": ["--epochs", "5"], "cfimdb": ["--epochs", "5"]}


def majority_accuracy(folder: Path, name: str) -> float:
    """Dev accuracy of always saying the training set's most frequent class."""
    training, dev = (
        read_sentiment(folder / f"ids-{name}-{split}.csv", NUM_LABELS[name])
        for split in ("train", "dev")
    )
    [(label, _)] = Counter(record.label for record in training).most_common(1)
    return sum(record.label == label for record in dev) / len(dev)


def classify(name: str, data: Path, flags: list[str]) -> None:
    """Run classifier.py on one data set, as a person would; its outputs go to runs/demo."""
    words = ["classifier.py", "--model_size", "gpt2-mini", "--fine-tune-mode", "full-model"]
    words += ["--dataset", name, "--lr", "5e-4", "--schedule", "linear", "--warmup", "0.1", *flags]
    words += ["--data_dir", str(data.relative_to(ROOT)), "--runs_dir", "runs/demo"]
    for split in ("dev", "test"):
        words += [f"--{split}_out", f"runs/demo/finetune-{name}-{split}-out.csv"]
    print("\npython", shlex.join(words), flush=True)
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)


@command
def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.parse_args()
    data, flags = ROOT / "data", COURSE
    if not (data / "ids-sst-train.csv").exists():
        data, flags = data / "sample", SAMPLE
    print("gpt2-mini, this project's own small GPT-2 (pretrained/gpt2-mini), learns sentiment")
    for name in NUM_LABELS:
        classify(name, data, flags[name])
        accuracy = majority_accuracy(data, name)
        print(f"{name}: the commonest class alone would have dev acc :: {accuracy:.3f}")


if __name__ == "__main__":
    main()
