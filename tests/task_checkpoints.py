"""A best.safetensors of each task without training: random weights, and biases that are not 0."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from course_files import work_in, write_course, write_model

from engine.checkpoint import save_tree, trainable_state
from engine.task import Task
from programs.tasks import TASKS

# Each by a name of the test's own: task, flags of training, flags of the task's program.
KINDS: dict[str, tuple[Task, list[str], list[str]]] = {
    "sst": (TASKS["sst"], ["--fine-tune-mode", "full-model"], ["--dataset", "sst"]),
    "head": (TASKS["cfimdb"], [], ["--dataset", "cfimdb"]),  # over a frozen backbone
    "paraphrase": (TASKS["paraphrase"], [], []),
    "sonnet": (TASKS["sonnet"], [], ["--max_new_tokens", "4"]),
}


def program_flags(kind: str) -> list[str]:
    """Those by which the task's program is started."""
    return KINDS[kind][2]


def build(kind: str, model_size, extension: Sequence[str] = ()):
    """(model, settings) as a run would have them, every trained tensor moved at random."""
    task, training, program = KINDS[kind]
    words = [*training, *program, "--model_size", str(model_size)]
    words += [word for flag in extension for word in ("--extension", flag)]
    torch.manual_seed(0)
    model, settings = task.start(task.get_args(words))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, settings


def save(path, kind: str, model, settings) -> Path:
    tree = {
        "task": KINDS[kind][0].name,
        "settings": vars(settings),
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
