"""Runs of the tasks' programs in two processes, of which each batch has a share."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_run import run_path

RUNS = {
    "sst": ["classifier", "--fine-tune-mode", "full-model", "--dataset", "sst"],
    "features": ["classifier", "--fine-tune-mode", "last-linear-layer", "--dataset", "cfimdb"],
    "paraphrase": ["paraphrase_detection", "--accumulate", "2", "--clip", "0.5"],
    "sonnet": ["sonnet_generation", "--max_new_tokens", "4"],
}
FLAGS = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--lr", "1e-3"]


def flags_of(name: str, batch_size: int) -> list[str]:
    program, *flags = RUNS[name]
    if program == "classifier":
        flags += ["--hidden_dropout_prob", "0"]
    return [program, *FLAGS, *flags, "--batch_size", str(batch_size)]


def torchrun(script, *words) -> subprocess.CompletedProcess:
    """The script in two processes that share the work over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)


def figures(folder: Path) -> list[dict]:
    path = run_path(folder, "*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
