"""See it work in minutes, without network: `make demo`.

Makes a small GPT-2 with random weights and a tokenizer of its own, fine-tunes it for sentiment as
`classifier.py` does with the real GPT-2, and writes the predictions. It uses the course's data if
they are in data/, else the project's own data/sample. Its figures are this small model's, not
GPT-2's.
"""

import argparse
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from classifier import NUM_LABELS
from config import GPT2Config
from corpus import train_tokenizer
from dataset import read_sentiment
from models.gpt2 import GPT2Model
from utils import ROOT, command

SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_gpt2(folder, texts: list[str], vocab_size: int, seed: int = 0, **shape) -> None:
    """Write a GPT-2 with random weights and its own tokenizer, in HuggingFace's format."""
    tokenizer = train_tokenizer(texts, vocab_size)
    shape = {"intermediate_size": 4 * shape["hidden_size"], **shape}
    torch.manual_seed(seed)
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def training_data(folder: Path) -> dict[str, list]:
    """The training records of both sentiment sets in a folder."""
    return {
        name: read_sentiment(folder / f"ids-{name}-train.csv", num_labels)
        for name, num_labels in NUM_LABELS.items()
    }


def majority_accuracy(folder: Path, name: str, training: list) -> float:
    """Dev accuracy of always saying the training set's most frequent class."""
    [(label, _)] = Counter(record.label for record in training).most_common(1)
    dev = read_sentiment(folder / f"ids-{name}-dev.csv", NUM_LABELS[name])
    return sum(record.label == label for record in dev) / len(dev)


def classify(name: str, data: Path, model: Path, epochs: int) -> None:
    """Run classifier.py on one data set, as a person would; its outputs go to runs/demo."""
    words = ["classifier.py", "--fine-tune-mode", "full-model", "--lr", "1e-3", "--dataset", name]
    words += ["--epochs", str(epochs), "--runs_dir", "runs/demo"]
    words += ["--model_size", str(model.relative_to(ROOT))]
    words += ["--data_dir", str(data.relative_to(ROOT))]
    for split in ("dev", "test"):
        words += [f"--{split}_out", f"runs/demo/finetune-{name}-{split}-out.csv"]
    print("\npython", shlex.join(words), flush=True)
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--epochs", type=int, help="default: 3 on the course's data, 8 on the sample"
    )
    args = parser.parse_args()
    data, epochs = ROOT / "data", args.epochs or 3
    if not (data / "ids-sst-train.csv").exists():
        data, epochs = data / "sample", args.epochs or 8
    records = training_data(data)
    model = ROOT / "runs" / "demo" / "small-gpt2"
    texts = [record.text for rows in records.values() for record in rows]
    make_gpt2(model, texts, vocab_size=4096, **SHAPE)
    print(f"made a small GPT-2 with random weights (not the real one) in {model.relative_to(ROOT)}")
    for name, rows in records.items():
        classify(name, data, model, epochs)
        accuracy = majority_accuracy(data, name, rows)
        print(f"{name}: the commonest class alone would have dev acc :: {accuracy:.3f}")


if __name__ == "__main__":
    main()
