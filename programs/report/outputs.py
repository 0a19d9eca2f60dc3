"""What the model of a run's best epoch says on its dev rows."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.batches import forward_tokens
from engine.completion import complete, read_prompts
from engine.errors import InputError, notice
from engine.flags import length_limit
from engine.hub import load_tokenizer
from engine.parallel import Worker
from engine.predicting import outputs
from engine.prediction_files import is_from
from engine.records import PairRecord, Record, read_sonnets
from engine.sonnets import dev_gold
from programs.report.runs import Run
from programs.tasks import TASKS

POEMS = 3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Classified:
    """Of each dev row its text, length in tokens, gold label, and probabilities (n, classes)."""

    names: list[str]
    sent_ids: list[str]
    texts: list[str]
    lengths: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels


@dataclass(frozen=True)
class Loaded:
    """A run's model with what its texts are read by."""

    task: object
    model: torch.nn.Module
    settings: object
    tokenizer: object


def load(run: Run) -> Loaded:
    task = TASKS[run.task]
    model, settings = task.load(run.best_file)
    return Loaded(task, model.eval(), settings, load_tokenizer(settings.model_size))


@torch.no_grad()
def classified(loaded: Loaded) -> Classified:
    task, model, settings = loaded.task, loaded.model, loaded.settings
    limit = length_limit(settings, model)
    loaders = task.build_loaders(settings, loaded.tokenizer, limit, Worker(CPU), ["dev"])
    found = {}
    work = outputs(model, loaders["dev"], CPU, lambda batch: forward_tokens(model, batch))
    for batch, logits in work:
        found |= zip(batch["indices"], logits.float().softmax(dim=-1).tolist(), strict=True)
    dataset = loaders["dev"].dataset
    rows = task.read(task.paths(settings)["dev"], labelled=True, say=notice)[: settings.limit]
    return Classified(
        names=[str(name) for name in task.class_names],
        sent_ids=[row.sent_id for row in rows],
        texts=[text_of(row) for row in rows],
        lengths=np.array([len(dataset[i]["token_ids"]) for i in range(len(dataset))]),
        labels=np.array([row.label for row in rows]),
        probabilities=np.array([found[i] for i in range(len(dataset))]),
    )


def text_of(row) -> str:
    return f"{row.sentence1} / {row.sentence2}" if isinstance(row, PairRecord) else row.text


def token_ids_of(loaded: Loaded, sentence: str) -> list[int]:
    """The tokens that the model reads of a sentence; two questions with " / " between for pairs."""
    task, tokenizer = loaded.task, loaded.tokenizer
    limit = length_limit(loaded.settings, loaded.model)
    if not hasattr(task, "own_rows"):
        return tokenizer(sentence)["input_ids"][:limit]
    parts = sentence.split(" / ", 1)
    pair = len(task.columns) > 2
    if pair and len(parts) < 2:
        raise InputError(f'--sentence "{sentence}": expected two questions, "FIRST / SECOND"')
    texts = [parts] if pair else [sentence]
    [(_, row)] = task.own_rows(loaded.settings.replace(**{task.trial: texts}))
    [token_ids] = task.tokens(tokenizer, [row], limit, where="--sentence", say=notice)
    return token_ids


def poems(run: Run, loaded: Loaded) -> list[tuple[str, str, str | None]]:
    """(number, continued dev prompt, gold) of the first few, as the run wrote them."""
    prompts = read_prompts(loaded.settings, loaded.model)["dev"]
    gold = dev_gold(loaded.settings) or [None] * len(prompts)
    rows = list(zip(written(run, loaded, prompts), gold, strict=True))[:POEMS]
    return [(new.sent_id, new.text, true.text if true else None) for new, true in rows]


def written(run: Run, loaded: Loaded, prompts: list[Record]) -> list[Record]:
    """The file that the run wrote, if it still stands there; else all are drawn anew.

    All, as a sonnet depends on those that are drawn beside it.
    """
    path = loaded.task.outputs(loaded.settings)["dev"]
    if is_from(run.path, path):
        sonnets = read_sonnets(path)
        if [s.sent_id for s in sonnets] == [prompt.sent_id for prompt in prompts]:
            return sonnets
    return complete(loaded.model, prompts, loaded.settings)
