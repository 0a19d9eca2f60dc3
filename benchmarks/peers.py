"""The peers that each benchmark compares: the starter, torch's optimizer, this project.

transformers is in `huggingface.py`.
"""

import math
import statistics
import tempfile
from functools import cached_property
from unittest import mock

import torch

from benchmarks import starter, starter_data, starter_model
from benchmarks.peer import FULL_RATE, HEAD_RATE, TEMPERATURE, TOP_P, CountedRows, Peer
from benchmarks.step_times import calls_timed
from classifier import NUM_LABELS
from engine import completion
from engine.batches import TokenDataset, forward_tokens, make_loader, next_token_labels
from engine.checkpoint import RunFolder
from engine.fast.adamw import FusedAdamW
from engine.flags import fit_options
from engine.generation import generate
from engine.options import Progress
from engine.packing import rounded
from engine.parallel import start_worker
from engine.predicting import predict
from engine.recorded_gradients import RecordedGradients
from engine.settings import Settings
from engine.task import train
from engine.trainer import Trainer
from programs.tasks import TASKS

DROPOUT = 0.3


class Starter(Peer):
    """benchmarks/starter.py."""

    def build(self):
        config, task = self.load.config, self.job.task
        if task == "sonnet":
            model = starter.StarterSonnetGPT(config)
        elif task == "paraphrase":
            model = starter.StarterParaphraseGPT(config)
        else:
            labels = self.load.classes
            model = starter.StarterSentimentClassifier(config, labels, DROPOUT, self.job.mode)
            _set_head(model.classifier, self.load.head())
        from transformers import GPT2LMHeadModel

        starter_model.load_huggingface(
            model.gpt, GPT2LMHeadModel.from_pretrained(self.load.folder).state_dict()
        )
        return model

    def output_layer(self):
        return self.model.classifier

    def logits(self, batch):
        logits = super().logits(batch)
        return logits[:, self.load.answers] if self.job.task == "paraphrase" else logits

    def make_optimizer(self, parameters):
        return starter.StarterAdamW(parameters, lr=HEAD_RATE)

    def loader(self, rows, shuffle=True):
        labels = self.load.answers if self.job.task == "paraphrase" else range(self.load.classes)
        records = [(row.text, labels[row.label], row.sent_id) for row in rows]
        return starter_data.sentiment_loader(
            records, self.load.tokenizer, self.job.batch_size, shuffle=shuffle
        )

    def _first_rows(self):
        """One sonnet, as each of them is written by itself."""
        return self.load.rows[:1] if self.job.kind == "decode" else super()._first_rows()

    def train(self, rows):
        optimizer = starter.StarterAdamW(self.model.parameters(), lr=FULL_RATE)
        loader = self.loader(rows)
        return lambda: starter.train_epoch(self.model, loader, optimizer)

    def train_head(self, rows):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = starter.StarterAdamW(trained, lr=HEAD_RATE)
        loaders = self.loader(rows), self.loader(self.load.dev, shuffle=False)
        return lambda: starter.fit_sentiment(self.model, *loaders, optimizer, self.job.epochs)

    def evaluate(self, rows):
        loader = self.loader(rows, shuffle=False)
        return lambda: starter.evaluate(self.model, loader)

    def decode(self, rows):
        tokenizer, most = self.load.tokenizer, self.settings.new_tokens
        tokenizer.eos_token = None  # every sonnet gets all its tokens, from every peer

        def work():
            for row in rows:
                starter.generate(self.model, tokenizer, row.text, most, TEMPERATURE, TOP_P)

        return work


@torch.no_grad()
def _set_head(linear, weight) -> None:
    linear.weight.copy_(weight)
    linear.bias.zero_()


class TorchFused(Peer):
    """torch.optim.AdamW's fused step."""

    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, HEAD_RATE, eps=1e-6, weight_decay=0.0, fused=True)


class Ours(Peer):
    """The course's programs as this project has them; no checkpoints of whole models.

    A shape of batches is recorded when it comes for the second time: so all have come twice before
    the turns that are timed.
    """

    warm_ups = 2

    @classmethod
    def precision(cls, job, settings):
        return "bfloat16" if settings.bf16 and job.kind == "train" else "float32"

    def build(self):
        self.task = TASKS[self.job.task]
        self.worker = start_worker(self.settings.use_gpu)
        argv = ["--model_size", self.settings.model_size, "--epochs", str(self.job.epochs)]
        argv += ["--use_gpu"] * self.settings.use_gpu
        if self.precision(self.job, self.settings) == "bfloat16":
            argv += ["--bf16"] + ["--tf32"] * self.settings.use_gpu
        argv += self.more_flags()
        sentiment = self.job.task in NUM_LABELS
        argv += ["--fine-tune-mode", self.job.mode] * sentiment
        if self.job.kind == "decode":
            argv += ["--max_new_tokens", str(self.settings.new_tokens)]
            argv += ["--temperature", str(TEMPERATURE), "--top_p", str(TOP_P)]
        model, self.flags = self.task.start(self.task.get_args(argv))
        if sentiment:
            _set_head(model.sentiment_head, self.load.head())
        return model

    def more_flags(self) -> list[str]:
        return []

    def _first_rows(self):
        return self.load.rows if self.settings.use_gpu else super()._first_rows()

    def step_times(self):
        """With the host's part of it in the step itself, without the loop around."""
        with calls_timed(self.trainer, "step") as inside:
            found = super().step_times()
        return found | {"step_host_ms": 1000 * statistics.median(inside)}

    def counted(self):
        """A network only where Python calls it each time: no hook is there in a replay. What is
        trained is counted when batches are put together, what is written by its length."""
        return super().counted() if self.job.kind == "evaluate" else None

    def output_layer(self):
        return self.model.sentiment_head

    def make_optimizer(self, parameters):
        return FusedAdamW(parameters, lr=HEAD_RATE)

    def loader(self, rows, shuffle=True):
        tokens, labels = self.load.tokens(rows), [row.label for row in rows]
        if self.job.task == "sonnet":
            labels = [next_token_labels(ids) for ids in tokens]
        dataset = TokenDataset(tokens, [row.sent_id for row in rows], labels)
        return make_loader(dataset, self.job.batch_size, seed=self.settings.seed, shuffle=shuffle)

    @cached_property
    def trainer(self) -> Trainer:
        """One for all turns, as a run records its steps once for all epochs."""
        return Trainer(
            self.model,
            self.loader(self.load.rows),
            self.task.loss_fn,
            fit_options(self.flags, metric="nothing"),
            RunFolder("runs", "bench", "core", Settings({}), writes=False),
            self.worker,
            extensions=[],
            forward=forward_tokens,
            log=lambda message: None,
        )

    def train(self, rows):
        run = self.trainer
        run.loader, run.progress = self.loader(rows).watched(self.count), Progress()

        def work():
            run.train_epoch()
            if run.gradients.micro_batch:  # other peers have no such way out
                raise torch.OutOfMemoryError(f"{run.gradients.micro_batch} rows at a time only")

        return work

    def count(self, batch: dict) -> None:
        """Note what a step of training reads."""
        rows, t = batch["token_ids"].shape
        recorded = isinstance(self.trainer.gradients, RecordedGradients)
        self.meter.counts["rows"] += rows
        self.meter.counts["positions"] += rows * (rounded(t, math.inf) if recorded else t)

    def train_head(self, rows):
        loaders = {"train": self.loader(rows), "dev": self.loader(self.load.dev, shuffle=False)}
        loaders["train"].batch_sampler = CountedRows(loaders["train"].batch_sampler, self.meter)
        folder = tempfile.mkdtemp(dir=self.scratch.name)
        run = RunFolder(folder, "sst", "bench", self.flags)
        return lambda: train(self.task, self.flags, self.model, loaders, run, self.worker)

    def evaluate(self, rows):
        loader = self.loader(rows, shuffle=False)
        return lambda: predict(self.model, loader, self.device)

    def decode(self, rows):
        self.model.tokenizer.eos_token = None

        def counting(model, tokens, mask, **options):
            texts = generate(model, tokens, mask, **options)
            self.meter.counts["rows"] += sum(map(len, texts)) - int(mask.sum())
            return texts

        def work():
            with mock.patch.object(completion, "generate", counting):
                completion.complete(self.model, rows, self.flags)

        return work


class OursFloat32(Ours):
    """Ours without `--bf16` and `--tf32`, beside the one with them."""

    @classmethod
    def precision(cls, job, settings):
        return "float32"


class OursEager(Ours):
    """Ours without recordings: on a GPU, one launch a kernel."""

    def more_flags(self):
        return ["--eager"]


class OursCompiled(Ours):
    """Ours with `--compile`."""

    def more_flags(self):
        return ["--compile"]
