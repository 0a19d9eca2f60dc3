"""Samples of the policy as batches to learn from, drawn when it is their turn.

A batch has the G samples of each of some prompts, one after the other: token_ids and attention_mask
(b, t), prompt and sample; answers (b, t), the sample's next tokens; rewards and advantages (b,);
reference (b, t), log π_ref; and, where a batch serves for several updates, old (b, t), log π_old.

Samples are drawn at temperature 1 from all tokens: from the very π whose log-probabilities stand in
the ratio π/π_old. What is drawn follows from the seed, the epoch and the step alone.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from engine.batches import (
    IGNORED_LABEL,
    BatchLoader,
    collate,
    forward_tokens,
    next_token_labels,
    next_token_loss,
    split_batch,
)
from engine.checkpoint import RunFolder
from engine.completion import prompt_dataset
from engine.generation import generate
from engine.length_buckets import LengthBuckets
from engine.mixed_precision import autocast
from engine.parallel import Worker
from engine.predicting import outputs, rows_at_once
from engine.records import Record
from engine.sonnets import opening_lines
from engine.state import expect
from engine.trees import load_tree
from programs.grpo.losses import advantages
from programs.grpo.rewards import Rewards, rewards

ROWS = 16  # that a CPU reads at once without a gradient
SEEDS = 2**63


@dataclass(frozen=True)
class Job:
    """What a run samples with, and scores by. known: the normalised lines of training sonnets."""

    args: object
    model: torch.nn.Module
    reference: torch.nn.Module
    weights: Rewards
    known: frozenset[str]
    worker: Worker

    @property
    def device(self) -> torch.device:
        return self.worker.device


@dataclass(frozen=True)
class Samples:
    """Samples of prompts, each prompt's together; batch: token_ids, attention_mask, answers."""

    sonnets: list[Record]
    figures: list[Rewards]
    batch: dict


@torch.no_grad()
def draw(job: Job, sonnets: list[Record], copies: int, seed: str) -> Samples:
    """So many samples of each sonnet's first three lines."""
    if not sonnets:  # a worker's empty share
        return Samples([], [], _batch([], []))
    prompts = prompt_dataset(job.model, sonnets, where=job.args.sonnet_path)
    rows = [prompts[i] for i in range(len(prompts)) for _ in range(copies)]
    origins = [sonnet for sonnet in sonnets for _ in range(copies)]
    tokenizer, tokens = job.model.tokenizer, _generate(job, rows, seed)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]
    given = [len(opening_lines(sonnet)) for sonnet in origins]
    return Samples(
        sonnets=[Record(o.sent_id, text) for o, text in zip(origins, texts, strict=True)],
        figures=[rewards(t, n, job.known) for t, n in zip(texts, given, strict=True)],
        batch=_batch(rows, tokens),
    )


def _generate(job: Job, rows: list[dict], seed: str) -> list[list[int]]:
    """Token ids of each row's prompt and of what was drawn after it, its end token too."""
    prompts, device = collate(rows), job.device
    number = random.Random(seed).randrange(SEEDS)
    tokens = generate(
        job.model.gpt,
        prompts["token_ids"].to(device),
        prompts["attention_mask"].to(device),
        max_new_tokens=job.args.max_new_tokens,
        end_token=job.model.tokenizer.eos_token_id,
        record=False if job.args.eager else None,
        generator=torch.Generator(device).manual_seed(number),
    )
    return [row.tolist() for row in tokens]


def _batch(rows: list[dict], tokens: list[list[int]]) -> dict:
    """labels (b,) stand for the samples, which training counts."""
    examples = []
    for row, ids in zip(rows, tokens, strict=True):
        before = [IGNORED_LABEL] * (len(row["token_ids"]) - 1)
        answers = before + next_token_labels(ids)[len(before) :]
        examples.append(row | {"token_ids": ids, "label": answers})
    batch = collate(examples)
    answers = batch["labels"] if examples else batch["token_ids"]
    labels = torch.zeros(len(examples), dtype=torch.long)
    return batch | {"answers": answers, "labels": labels}


def token_log_probs(model, batch: dict):
    """log π of each token of the samples, (b, t), and 0 elsewhere."""
    logits = forward_tokens(model, batch).float()  # (b, t, v)
    losses = next_token_loss(logits, batch["answers"], reduction="none")
    return -losses.view(batch["answers"].shape)


def known_log_probs(job: Job, model, batch: dict):
    """`token_log_probs` without a gradient, in the precision of training; (b, t) on the CPU."""

    def work(piece: dict):
        with autocast(job.args, job.device):
            return token_log_probs(model, piece)

    was_training = model.training
    pieces = split_batch(batch, rows_at_once(job.device, ROWS))
    found = [result.cpu() for _, result in outputs(model, pieces, job.device, work)]
    model.train(was_training)
    return torch.cat(found)


def rollout(job: Job, sonnets: list[Record], seed: str) -> dict:
    """A batch: the samples of these sonnets' prompts and what the loss needs to know of them."""
    args = job.args
    samples = draw(job, sonnets, args.group_size, seed)
    totals = [figures.total(job.weights) for figures in samples.figures]
    scores = torch.tensor(totals, dtype=torch.float64).view(len(sonnets), args.group_size)
    batch = samples.batch | {
        "rewards": scores.flatten().float(),
        "advantages": advantages(scores).flatten(),
    }
    if args.beta:
        batch["reference"] = known_log_probs(job, job.reference, batch)
    if args.updates > 1:
        batch["old"] = known_log_probs(job, job.model, batch)
    return batch


class RolloutLoader(BatchLoader):
    """Each batch is drawn from the policy as it is then, and comes `updates` times.

    make(numbers of prompts, seed) draws one; kept(): the batch of an interrupted run.
    """

    follows_model = True

    def __init__(self, dataset, sampler: LengthBuckets, updates: int, make: Callable, kept):
        super().__init__(dataset, sampler, collate=None)
        self.updates, self.make, self.kept, self.current = updates, make, kept, None

    def __len__(self):
        return len(self.batch_sampler) * self.updates

    def batches(self, first: int = 0) -> Iterator[dict]:
        """All from the first-th on; one that is in the middle of its updates is the kept one."""
        sampler, prompts = self.batch_sampler, list(self.batch_sampler)
        for step in range(first, len(self)):
            number, update = divmod(step, self.updates)
            if update == 0:
                seed = f"{sampler.seed} {sampler.epoch} {number} {sampler.rank}"
                self.current = self.make(prompts[number], seed)
            elif step == first:
                self.current = self.kept()
            yield self.current


class RolloutFolder(RunFolder):
    """The folder of a run whose last file has its batch, too, where that has not served its time.

    loader: the run's `RolloutLoader`.
    """

    loader: RolloutLoader

    def save_last(self, tree: dict) -> None:
        if self.loader.updates > 1 and self.loader.current is not None:
            tree = tree | {"rollout": self.loader.current}
        super().save_last(tree)

    def kept_rollout(self) -> dict:
        tree = load_tree(self.last, only="rollout")
        expect(tree, {"rollout": dict}, self.last)
        return tree["rollout"]
