"""A best.safetensors of each task without training: random weights, and biases that are not 0."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from course_files import work_in, write_course, write_model

import classifier
import paraphrase_detection
import sonnet_generation
from engine.checkpoint import save_tree, trainable_state
from engine.hub import load_tokenizer

# Each by a name of the test's own: module, the checkpoint's task, flags.
KINDS: dict[str, tuple[ModuleType, str, list[str]]] = {
    "sst": (classifier, "sst", ["--dataset", "sst", "--fine-tune-mode", "full-model"]),
    "head": (classifier, "cfimdb", ["--dataset", "cfimdb"]),  # over a frozen backbone
    "paraphrase": (paraphrase_detection, "paraphrase", []),
    "sonnet": (sonnet_generation, "sonnet", ["--max_new_tokens", "4"]),
}


def program_flags(kind: str) -> list[str]:
    """Those by which the task's program is started."""
    flags = KINDS[kind][2]
    return [word for word in flags if word not in ("--fine-tune-mode", "full-model")]


def build(kind: str, model_size, extension: Sequence[str] = ()):
    """(model, settings) as a run would have them, every trained tensor moved at random."""
    module, task, flags = KINDS[kind]
    words = [word for flag in extension for word in ("--extension", flag)]
    args = module.get_args([*flags, "--model_size", str(model_size), *words])
    if module is classifier:
        args.num_labels = classifier.NUM_LABELS[task]
    if module is paraphrase_detection:
        args.answer_tokens = paraphrase_detection.answer_tokens(load_tokenizer(model_size))
    torch.manual_seed(0)
    model = module.build_model(args).eval()
    args.gpt_config = asdict(model.gpt.config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, args


def save(path, kind: str, model, args) -> Path:
    tree = {
        "task": KINDS[kind][1],
        "settings": vars(args),
        "metrics": {},
        "model": trainable_state(model),
    }
    save_tree(path, tree)
    return Path(path)


def write_originals(root, rows: int = 40, **model) -> None:
    """data/, model/ and a checkpoint of each kind; model: as for `write_model`."""
    write_course(root / "data", rows)
    write_model(root / "model", **model)
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, root)
        for kind in KINDS:
            save(f"{kind}.safetensors", kind, *build(kind, "model"))


def work_beside(monkeypatch, originals, folder) -> None:
    """Work in a folder that has links to all of the originals."""
    work_in(monkeypatch, folder)
    monkeypatch.setattr("programs.quantize.job.TIMED_ROUNDS", 1)
    for path in originals.iterdir():
        Path(path.name).symlink_to(path)
