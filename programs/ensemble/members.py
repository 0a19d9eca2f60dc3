"""What checkpoints of a classification task say of rows, computed once and kept on the disk."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from engine.batches import TokenDataset, forward_tokens, make_loader
from engine.checkpoint import load_tree, save_tree
from engine.classification import ClassificationTask
from engine.errors import InputError
from engine.hub import load_tokenizer
from engine.predicting import outputs, rows_at_once
from engine.settings import Settings


@dataclass(frozen=True)
class Member:
    """A checkpoint of a task, whose rows it reads as its own run did: of any size, any tokenizer.

    What it said before is read from `runs_dir`/ensemble. batch_size: rows that a CPU reads at once.
    """

    task: ClassificationTask
    path: str
    model: nn.Module
    settings: Settings
    device: torch.device
    runs_dir: str
    batch_size: int

    @classmethod
    def load(cls, task: ClassificationTask, path, device, *, runs_dir, batch_size) -> "Member":
        model, settings = task.load(path)
        return cls(task, str(path), model.to(device), settings, device, runs_dir, batch_size)

    def log_probs(self, rows: list, split: str, *, where, say=print) -> torch.Tensor:
        """log p(class | row), (n, c) in float64, in the order of the rows.

        split: for the kept file's name; where: the rows' file, for errors; say: gets a line about
        texts that are cut.
        """
        tokenizer = load_tokenizer(self.settings.model_size)
        positions = self.model.gpt.config.max_position_embeddings
        limit = getattr(self.settings, "max_length", None) or positions
        token_ids = self.task.tokens(tokenizer, rows, limit, where=where, say=say)
        dataset = TokenDataset(token_ids, [row.sent_id for row in rows])
        key = hashlib.sha256(f"{self.fingerprint}{dataset.fingerprint()}".encode())
        name = f"{self.task.name}-{split}-{key.hexdigest()[:16]}.safetensors"
        kept = Path(self.runs_dir) / "ensemble" / name
        if not kept.exists():
            said = log_probabilities(self.model, dataset, self.batch_size, self.device)
            save_tree(kept, {"task": "ensemble", "member": self.path, "log_probs": said})
        found = load_tree(kept)["log_probs"]
        if found.shape[-1] != len(self.task.classes):
            raise InputError(
                f"{self.path}: a model of {found.shape[-1]} classes, expected the "
                f"{len(self.task.classes)} of {self.task.name}: give a checkpoint of this task"
            )
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what the model says."""
        text = json.dumps([self.settings.extension, self.settings.model_size], default=str)
        content = hashlib.sha256(text.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.cpu().flatten().contiguous().view(torch.uint8).numpy())
        return content.hexdigest()


def log_probabilities(model, dataset: TokenDataset, batch_size: int, device) -> torch.Tensor:
    """(n, c) in float64, in the data set's order."""
    loader = make_loader(dataset, rows_at_once(device, batch_size))
    batches = tqdm(loader, desc="predict", leave=False, disable=None)
    found, rows = [], []
    for batch, logits in outputs(model, batches, device, partial(forward_tokens, model)):
        found.append(logits)
        rows += batch["indices"]
    ordered = torch.cat(found).cpu()[torch.tensor(rows).argsort()]
    return ordered.double().log_softmax(dim=-1)
