"""Runs on disk: `runs/<task>-<name>/` with config.json, best and last.safetensors, metrics.jsonl.

Their safetensors files are trees (engine/trees.py), and each appears whole or not at all.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from engine.best_file import named_best, promote
from engine.curves import plot_curves
from engine.devices import hardware, peak_mb
from engine.errors import InputError
from engine.files import atomic_write, check_writable, remove_leftovers
from engine.inputs import check_inputs, inputs_now
from engine.provenance import current_command, current_commit
from engine.run_lock import RunLock
from engine.settings import Settings
from engine.sharding import gathered
from engine.state import (
    expect,
    load_checkpoint,
    load_trainable_state,
    named_as_of_another_version,
    trainable_state,
)
from engine.trees import load_tree, save_tree
from engine.writer import Writer

UNNAMED = {
    "use_gpu",
    "resume",
    "quiet",
    "json",
    "runs_dir",
    "save_minutes",
    "checkpoint",
    "out",
    "dtype",
    "shard",
}  # and *_out


class RunFolder:
    """The folder of one run; a worker that is not the main one reads and never writes.

    best and last are one unit: last names the digest and the epoch of its best. A new best is
    written beside the old one, and takes its place when a last file names it. So the rename of last
    is the moment at which a state becomes the run's, and what an earlier run left stays until then.
    A thread writes both, while training goes on (`writing`).
    """

    def __init__(
        self, root, task: str, name: str, settings: Settings, writes: bool = True, inputs=None
    ):
        """The folder's name carries a hash of the changed settings that change the result.

        inputs: what else the run depends on, as names and digests (engine/inputs.py).
        """
        self.root, self.task, self.name = Path(root), task, name
        self.path = self._path_of(settings)
        self.settings, self.writes = settings, writes
        self.inputs: dict[str, str] = inputs or {}
        self.named: dict | None = None  # epoch and digest of the best file that belongs to last
        self._lock, self._resumed = None, False
        self.writer: Writer | None = None

    def _path_of(self, settings: Settings) -> Path:
        changed = settings.changed().items()
        decisive = {key: value for key, value in changed if not _unnamed(key)}
        text = json.dumps(decisive, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.root / f"{self.task}-{self.name}-{digest}"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def new_best(self) -> Path:
        """Where a best epoch waits for the last file that names it."""
        return self.path / "best.new.safetensors"

    def newest_best(self) -> Path:
        """Where the best epoch so far is, once all is written; only in `writing`."""
        self.writer.wait()
        return self.new_best if self.new_best.exists() else self.best

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run, so that no other process writes into its folder; may be nested."""
        if not self.writes:
            yield
            return
        self._lock = self._lock or RunLock(self.path)
        with self._lock:
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """In the block best and last are written in a thread; at its end they are there."""
        with Writer() as self.writer:
            yield

    def check_begun(self, resume: bool) -> None:
        """Refuse to resume what was never begun; nothing is written by that."""
        if resume and not self.last.exists():
            others = sorted(path.name for path in self.path.parent.glob(f"{self.task}-*"))
            raise InputError(
                f"--resume: no {self.last}: give the flags of the run to go on with, or leave "
                f"--resume out; runs here: {', '.join(others) or 'none'}"
            )

    def shorter_run(self) -> Path | None:
        """The longest run here that differs from this one in fewer epochs alone."""
        for epochs in range(getattr(self.settings, "epochs", 1) - 1, 0, -1):
            path = self._path_of(self.settings.replace(epochs=epochs))
            if (path / self.last.name).exists():
                return path
        return None

    def take_over(self, path: Path) -> None:
        """Make the folder of another run this one's; one that a process writes into is refused."""
        if self.writes:
            with RunLock(path):
                pass
            os.replace(path, self.path)
            self._write_config()

    def start(self, resume: bool) -> None:
        """Begin anew, or make sure that there is something to go on with.

        What an earlier run with the same settings left stays until this one has something better.
        """
        self.check_begun(resume)
        self._resumed = resume
        if resume:
            stored = load_tree(self.last, only="inputs").get("inputs") or {}
            check_inputs(stored, self.inputs, self.last)
        if not self.writes:
            return
        with self.locked():
            check_writable(self.last)
            promote(self.last, self.best, self.new_best)
            self.named = named_best(self.last, self.best) if resume else None
            remove_leftovers(self.path)
            if not resume:
                self._write_config()

    def _write_config(self) -> None:
        with atomic_write(self.path / "config.json") as file:
            made_by = {"command": current_command(), "commit": current_commit()}
            config = {"task": self.task, **vars(self.settings), **made_by}
            json.dump(config, file, indent=2, default=str)

    def save_best(self, model, metrics: dict) -> None:
        """Keep the weights of an epoch; of a sharded model, all workers call it together."""
        state = gathered(trainable_state(model))
        if not self.writes:
            return
        tree = {
            "task": self.task,
            "settings": vars(self.settings),
            "inputs": self.inputs,
            "metrics": metrics,
            "model": state,
        }
        self.writer.write(self._write_best, tree)

    def _write_best(self, tree: dict) -> None:
        digest = save_tree(self.new_best if self.last.exists() else self.best, tree)
        self.named = {"epoch": tree["metrics"].get("epoch"), "digest": digest}

    def save_last(self, tree: dict) -> None:
        if self.writes:
            self.writer.write(self._write_last, {"task": self.task, "inputs": self.inputs} | tree)

    def _write_last(self, tree: dict) -> None:
        save_tree(self.last, {**tree, "best": self.named})
        promote(self.last, self.best, self.new_best)

    def write_metrics(self, history: list[dict]) -> None:
        """One JSON line an epoch, in metrics.jsonl."""
        if self.writes:
            with atomic_write(self.path / "metrics.jsonl") as file:
                file.writelines(json.dumps(record) + "\n" for record in history)

    def write_resources(self, device) -> None:
        """What training took of the machine; a run that went on has the largest peak."""
        path, peak = self.path / "resources.json", round(peak_mb(device))
        if self.writes:
            if self._resumed and path.exists():
                peak = max(peak, json.loads(path.read_text(encoding="utf-8"))["peak_mb"])
            with atomic_write(path) as file:
                json.dump({"hardware": hardware(device), "peak_mb": peak}, file)

    def draw_curves(self, history: list[dict], metric: str, best_epoch: int) -> None:
        if self.writes:
            title = f"{self.task}, {getattr(self.settings, 'model_size', self.name)}"
            plot_curves(history, self.path / "curves.png", metric, best_epoch, title)


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
    expect(tree, {"settings": dict, "model": dict}, path)
    settings = Settings(tree["settings"])
    has_backbone = "gpt.word_embedding.weight" in tree["model"]
    with named_as_of_another_version(path, "settings"):
        model = build_model(settings, pretrained=not has_backbone)
    load_trainable_state(model, tree["model"], path)
    stored = tree.get("inputs") or {}
    check_inputs(stored, inputs_now(stored, model, settings), path)
    return model, settings
