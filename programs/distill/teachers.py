"""What teachers say of the training texts: classes once and for all, next tokens batch by batch.

ClassTeachers   log p(class | text) of every training row, computed before training and kept;
                a teacher reads the text by its own tokenizer, so that it may be any GPT-2
TokenTeachers   logits (m, b · t, v) of each batch, computed when it is its turn, as all of them
                would fill a disk; teachers and student share a tokenizer
"""

import torch

from engine.batches import BatchLoader, forward_tokens
from engine.classification import ClassificationTask
from engine.errors import InputError
from engine.hub import load_tokenizer
from engine.inputs import tokenizer_digest
from engine.parallel import Worker
from engine.settings import Settings
from engine.task import Task
from programs.ensemble.members import Member

SAID = "teachers"  # in a batch: log-probabilities (b, m, c)


class ClassTeachers:
    def __init__(self, task: ClassificationTask, paths: list[str], settings: Settings, worker):
        """Reads the task's training rows as its run will."""
        where = task.paths(settings)["train"]
        rows = task.read(where, labelled=True, say=lambda line: None)[: settings.limit]
        how = {"runs_dir": settings.runs_dir, "batch_size": settings.batch_size}
        said = [
            Member.load(task, path, worker.device, **how).log_probs(
                rows, "train", where=where, say=worker.say
            )
            for path in paths
        ]
        self.said = torch.stack(said, dim=1).float()  # (n, m, c)

    def beside(self, loader: BatchLoader) -> BatchLoader:
        """The loader's batches, each with what the teachers say of its rows."""

        def collate(examples: list) -> dict:
            batch = loader.collate(examples)
            return batch | {SAID: self.said[batch["indices"]]}

        return BatchLoader(loader.dataset, loader.batch_sampler, collate)

    def logits(self, batch: dict) -> torch.Tensor:
        """(m, b, c), up to a constant a row."""
        return batch[SAID].transpose(0, 1)


class TokenTeachers:
    def __init__(self, task: Task, paths: list[str], settings: Settings, worker: Worker):
        self.models = []
        for path in paths:
            model, trained_with = task.load(path)
            check_tokenizer(path, trained_with, settings)
            self.models.append(model.to(worker.device).eval().requires_grad_(False))

    def beside(self, loader: BatchLoader) -> BatchLoader:
        """The loader itself, whose texts every teacher can read whole."""
        longest = max(loader.dataset.lengths)
        positions = min(model.gpt.config.max_position_embeddings for model in self.models)
        if longest > positions:
            raise InputError(
                f"--teacher: it has {positions} positions, and a training text has {longest} "
                f"tokens: add --max_length {positions}"
            )
        return loader

    @torch.no_grad()
    def logits(self, batch: dict) -> torch.Tensor:
        """(m, b · t, v), in float32 whatever the student computes in."""
        with torch.autocast(batch["token_ids"].device.type, enabled=False):
            said = [forward_tokens(model, batch).flatten(0, -2) for model in self.models]
        return torch.stack(said)


def check_tokenizer(path, trained_with: Settings, settings: Settings) -> None:
    """Refuse a teacher of other tokens than the student's."""
    digests = [tokenizer_digest(load_tokenizer(s.model_size)) for s in (trained_with, settings)]
    if digests[0] != digests[1]:
        raise InputError(
            f"{path}: its tokenizer, of {trained_with.model_size}, is not that of "
            f"{settings.model_size}: give a teacher and a --model_size that share one"
        )


def make_teachers(task: Task, paths: list[str], settings: Settings, worker: Worker):
    """The teachers of a run of a task with these settings."""
    kind = ClassTeachers if isinstance(task, ClassificationTask) else TokenTeachers
    return kind(task, paths, settings, worker)
