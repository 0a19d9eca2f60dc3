"""A published size of GPT-2 with random weights, in HuggingFace's format, for timing.

python benchmarks/random_checkpoint.py --size gpt2 --tokenizer FOLDER --out runs/gpt2-random
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command
from engine.hub import save_gpt2

# isort: split

import torch

from config import SIZES
from models.gpt2 import GPT2Model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def write_random_checkpoint(size: str, tokenizer: Path, out: Path, seed: int = 0) -> None:
    """Weights as at the start of pre-training, beside the tokenizer files of another folder."""
    files = [tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).exists()]
    if not files:
        raise InputError(f"{tokenizer}: none of {', '.join(TOKENIZER_FILES)} is in this folder")
    torch.manual_seed(seed)
    save_gpt2(GPT2Model(SIZES[size]), out)
    for file in files:
        shutil.copyfile(file, out / file.name)


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with its files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_random_checkpoint(args.size, args.tokenizer, args.out)
    print(f"{args.out}: {args.size} with random weights")


if __name__ == "__main__":
    main()
