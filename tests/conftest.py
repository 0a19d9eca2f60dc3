"""Tiny things that need no download: tokenizers and GPT-2 folders made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start, too

import pytest
import torch
from course_files import make_gpt2

from utils import ROOT

torch.set_num_threads(1)


def make_folder(folder, *, dropout: float = 0.0, seed: int = 0, texts=None):
    """A tiny GPT-2 with random weights and its tokenizer, in HuggingFace format."""
    sample = sorted((ROOT / "data" / "sample").glob("*.[ct][sx][vt]"))
    make_gpt2(
        folder,
        texts or [path.read_text(encoding="utf-8") for path in sample],
        vocab_size=400,
        seed=seed,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny GPT-2 without dropout."""
    return make_folder(tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="session")
def dropout_folder(tmp_path_factory):
    """The same tiny GPT-2 with GPT-2's dropout of 0.1."""
    return make_folder(tmp_path_factory.mktemp("tiny-gpt2-dropout"), dropout=0.1)
