"""Runs on disk: `runs/<task>-<name>/` with config.json, best.* and last.safetensors, metrics.jsonl.

Tensors are kept in safetensors files, everything else as JSON in their header: loading a checkpoint
never runs code, and each file appears whole or not at all.
"""

import hashlib
import json
import subprocess
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.errors import InputError
from engine.files import ROOT, atomic_path, atomic_write, check_writable, remove_leftovers
from engine.settings import Settings

UNNAMED = {
    "use_gpu",
    "resume",
    "runs_dir",
    "save_minutes",
    "checkpoint",
    "out",
    "dtype",
}  # and *_out
RENAMED = {"input_quantiser": "input_quantizer"}  # parts of names in files of earlier versions


class RunFolder:
    """The folder of one run; a worker that is not the main one reads and never writes."""

    def __init__(self, root, task: str, name: str, settings: Settings, writes: bool = True):
        """The folder's name carries a hash of the changed settings that change the result."""
        changed = settings.changed().items()
        decisive = {key: value for key, value in changed if not _unnamed(key)}
        text = json.dumps(decisive, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.path = Path(root) / f"{task}-{name}-{digest}"
        self.task, self.settings, self.writes = task, settings, writes

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    def start(self, resume: bool) -> None:
        """Begin anew, or make sure that there is something to go on with.

        What an earlier run with the same settings left stays until this one has something better.
        """
        if resume and not self.last.exists():
            others = sorted(path.name for path in self.path.parent.glob(f"{self.task}-*"))
            raise InputError(
                f"--resume: no {self.last}: give the flags of the run to go on with, or leave "
                f"--resume out; runs here: {', '.join(others) or 'none'}"
            )
        if not self.writes:
            return
        check_writable(self.last)
        remove_leftovers(self.path)
        if not resume:
            with atomic_write(self.path / "config.json") as file:
                config = {"task": self.task, **vars(self.settings), "commit": current_commit()}
                json.dump(config, file, indent=2, default=str)

    def save_best(self, model, metrics: dict) -> None:
        if self.writes:
            tree = {
                "task": self.task,
                "settings": vars(self.settings),
                "metrics": metrics,
                "model": trainable_state(model),
            }
            save_tree(self.best, tree)

    def save_last(self, tree: dict) -> None:
        if self.writes:
            save_tree(self.last, {"task": self.task, **tree})

    def write_metrics(self, history: list[dict]) -> None:
        """One JSON line an epoch, in metrics.jsonl."""
        if self.writes:
            with atomic_write(self.path / "metrics.jsonl") as file:
                file.writelines(json.dumps(record) + "\n" for record in history)

    def draw_curves(self, history: list[dict], metric: str) -> None:
        if self.writes:
            with atomic_path(self.path / "curves.png") as path:
                plot_curves(history, path, metric)


def _unnamed(key: str) -> bool:
    return key in UNNAMED or key.endswith("_out")


def load_model(path, task: str, build_model):
    """(model, settings) of a best file, the model built by the task's `build_model` from these.

    A frozen backbone is not in the file: it is taken from the checkpoint that `model_size` names.
    """
    tree = load_checkpoint(path, task)
    if "settings" not in tree:
        raise InputError(
            f"{path}: the state of a run, not its best epoch: give its best.safetensors"
        )
    settings = Settings(tree["settings"])
    has_backbone = "gpt.word_embedding.weight" in tree["model"]
    model = build_model(settings, pretrained=not has_backbone)
    load_trainable_state(model, tree["model"], path)
    return model, settings


def load_checkpoint(path, task: str) -> dict:
    """The tree of a best or last file; one that another task wrote is refused."""
    tree = load_tree(path)
    if tree.get("task") != task:
        raise InputError(f"{path}: a checkpoint of task {tree.get('task')!r}, expected {task!r}")
    return tree


def trainable_state(model) -> dict[str, torch.Tensor]:
    """What training changes: every parameter and buffer but the frozen parameters."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def load_trainable_state(model, state: dict[str, torch.Tensor], where) -> None:
    """The inverse of `trainable_state`; names and shapes must match exactly."""
    expected = trainable_state(model)
    unlike = sorted(expected.keys() ^ state.keys())
    unlike += [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if unlike:
        raise InputError(
            f"{where}: a checkpoint of another model: {len(unlike)} tensors differ, first "
            f"{unlike[0]}: give the --model_size and flags that it was trained with"
        )
    model.load_state_dict(state, strict=False)


def save_tree(path, tree: dict) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and tensors into one file."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_pack(tree, tensors))
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"tree": text})
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error}): free some space there") from error


def load_tree(path, only: str | None = None) -> dict:
    """Read what `save_tree` wrote, tensors onto the CPU; only: no other key of the outermost dict.

    What is not asked for stays on the disk.
    """
    try:
        with safe_open(path, framework="pt") as file:
            pairs = json.loads((file.metadata() or {})["tree"])["dict"]
            return {key: _unpack(item, file) for key, item in pairs if only in (None, key)}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: no whole checkpoint of this project ({error}): delete it and train again"
        ) from error


def _pack(value, tensors: dict):
    """JSON for a tree; its tensors go into `tensors`, and dicts become lists of [key, value]."""
    if isinstance(value, torch.Tensor):
        name = f"tensor.{len(tensors)}"
        value = value.detach().cpu().contiguous()
        part_of_more = value.untyped_storage().nbytes() != value.nbytes
        tensors[name] = value.clone() if part_of_more else value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, tensors) for item in value]}
    return value


def _unpack(value, file):
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return file.get_tensor(content).clone()  # a view would keep Windows from replacing the file
    if kind == "dict":
        return {_current_name(key): _unpack(item, file) for key, item in content}
    items = [_unpack(item, file) for item in content]
    return tuple(items) if kind == "tuple" else items


def _current_name(key):
    """A key of a stored dict as it is called today."""
    for before, now in RENAMED.items() if isinstance(key, str) else ():
        key = key.replace(before, now)
    return key


def plot_curves(history: list[dict], path, metric: str) -> None:
    """Draw training loss and the dev metric by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = [record["epoch"] for record in history]
    figure, left = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    left.plot(epochs, [r["train_loss"] for r in history], "o-", color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss (nats a target)")
    left.yaxis.label.set_color("tab:blue")
    left.xaxis.get_major_locator().set_params(integer=True)
    right = left.twinx()
    right.plot(epochs, [r[metric] for r in history], "s-", color="tab:orange")
    right.set_ylabel(metric.replace("_", " "))
    right.yaxis.label.set_color("tab:orange")
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def current_commit() -> str:
    """The commit of the code, with "+changes" if the tree differs; "unknown" without git."""
    try:

        def git(*words):
            run = subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
            )
            return run.stdout.strip()

        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
