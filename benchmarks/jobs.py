"""What is measured: the jobs of the course, and the rows of each, which are the same for all peers.

On a CPU a job is a seeded sample of its file's rows, as all of them take hours; on a GPU it is the
whole file, unless a number of batches is asked for.
"""

import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from classifier import NUM_LABELS
from config import GPT2Config
from engine.batches import LengthBuckets, tokenize
from engine.devices import device_of
from engine.hub import checkpoint_folder, load_tokenizer
from engine.records import Record, data_file, read_pairs, read_sentiment, read_sonnets
from engine.sonnets import prompt_text
from models.base_gpt import read_config
from paraphrase_detection import answer_tokens, cloze_prompt

READERS = ("starter", "transformers", "transformers-bf16", "ours")
TRAINERS = (*READERS, "ours-float32", "ours-compiled", "ours-eager")
GPU_STEPS = 50  # of the optimizer, where nothing bounds them


@dataclass(frozen=True)
class Job:
    """One kind of work on one file. batches: how many of them a CPU does, 0 for all."""

    name: str
    words: str
    kind: str  # the method of a peer that does it
    task: str = "sst"
    batch_size: int = 8
    batches: int = 0
    split: str = "train"
    epochs: int = 1
    peers: tuple[str, ...] = TRAINERS

    @property
    def mode(self) -> str:
        return "last-linear-layer" if self.kind == "train_head" else "full-model"


JOBS = {
    job.name: job
    for job in (
        Job("start", "start-up", "start", peers=("starter", "transformers", "ours")),
        Job("sst-8", "SST, full model", "train", batches=12),
        Job("sst-64", "SST, full model", "train", batch_size=64, batches=3),
        Job("cfimdb-8", "CFIMDB, full model", "train", "cfimdb", batches=4),
        Job("paraphrase-64", "paraphrases", "train", "paraphrase", batch_size=64, batches=2),
        Job(
            "head",
            "SST, last linear layer, 10 epochs",
            "train_head",
            batches=6,
            epochs=10,
            peers=READERS,
        ),
        Job("sonnets-8", "sonnets", "train", "sonnet", batches=3),
        Job(
            "evaluate",
            "predicting SST's test set",
            "evaluate",
            batches=36,
            split="test",
            peers=READERS,
        ),
        Job(
            "decode",
            "continuing sonnets",
            "decode",
            "sonnet",
            batch_size=12,
            batches=1,
            split="test",
            peers=("starter", "transformers", "ours", "ours-eager"),
        ),
        Job("step", "one AdamW step", "step", batches=5, peers=("starter", "torch-fused", "ours")),
    )
}


@dataclass(frozen=True)
class Settings:
    """What all jobs and peers of a run share. batches: in place of each job's own number."""

    model_size: str
    data_dir: str = "data"
    use_gpu: bool = False
    bf16: bool = False
    seed: int = 11711
    batches: int | None = None
    new_tokens: int = 128

    @property
    def device(self) -> torch.device:
        return device_of(self.use_gpu)

    def batches_of(self, job: Job) -> int:
        """How many batches a job has at most; 0: as many as there are."""
        if self.batches is not None:
            return self.batches
        return 0 if self.use_gpu else job.batches


class Workload:
    """A job's rows, their tokens, and what doing all of it amounts to."""

    def __init__(self, job: Job, settings: Settings):
        self.job, self.settings = job, settings
        self.folder = checkpoint_folder(settings.model_size)
        self.config = GPT2Config(**read_config(self.folder))
        self.tokenizer = load_tokenizer(settings.model_size)
        self.rows: list[Record] = []
        self.dev: list[Record] = []
        most = settings.batches_of(job) * job.batch_size
        if job.kind != "step":
            self.rows = self._sample(job.split, most)
        if job.kind == "train_head":
            self.dev = self._sample("dev", most and max(most // 8, 1))  # SST's dev is an eighth

    def _sample(self, split: str, most: int) -> list[Record]:
        rows = read_rows(self.job.task, split, Path(self.settings.data_dir))
        if self.job.kind == "train" and self.job.task == "sonnet":
            end = self.tokenizer.eos_token
            rows = [replace(row, text=row.text + end) for row in rows]
        if self.job.kind == "train" and most:
            rows = self._rows_of_batches(rows, most // self.job.batch_size)
        return random.Random(self.settings.seed).sample(rows, min(most or len(rows), len(rows)))

    def _rows_of_batches(self, rows: list[Record], count: int) -> list[Record]:
        """The rows of so many batches of an epoch, from short to long ones.

        So few rows drawn alone would differ in length more than the neighbours in a whole file.
        """
        size, lengths = self.job.batch_size, [len(ids) for ids in self.tokens(rows)]
        epoch = LengthBuckets(lengths, size, seed=self.settings.seed)
        whole = [batch for batch in epoch if len(batch) == size]
        if count >= len(whole):
            return rows
        whole.sort(key=lambda batch: sum(lengths[i] for i in batch))
        chosen = [whole[(2 * i + 1) * len(whole) // (2 * count)] for i in range(count)]
        return [rows[i] for batch in chosen for i in batch]

    def tokens(self, rows: list[Record]) -> list[list[int]]:
        """The rows as token ids; in decoding the new ones must find room, too."""
        texts, sent_ids = [row.text for row in rows], [row.sent_id for row in rows]
        limit = self.config.max_position_embeddings
        if self.job.kind == "decode":
            limit -= self.settings.new_tokens
        return tokenize(self.tokenizer, texts, sent_ids, limit)

    @cached_property
    def answers(self) -> list[int]:
        """The tokens of the two answers to a paraphrase prompt."""
        return answer_tokens(self.tokenizer)

    @property
    def classes(self) -> int:
        """Columns of the logits: labels, answers, or the vocabulary."""
        return {"paraphrase": 2, "sonnet": self.config.vocab_size, **NUM_LABELS}[self.job.task]

    def head(self) -> torch.Tensor:
        """The weights (classes, d) with which every peer's new linear layer begins."""
        random = torch.Generator().manual_seed(self.settings.seed)
        return torch.randn(self.classes, self.config.hidden_size, generator=random) * 0.02

    @property
    def steps(self) -> int:
        """Of an optimizer."""
        if self.job.kind == "step":
            return self.settings.batches_of(self.job) or GPU_STEPS
        return -(-len(self.rows) // self.job.batch_size) * self.job.epochs

    def expected(self) -> dict[str, int]:
        """What every peer must have done after the job."""
        if self.job.kind == "step":
            return {"steps": self.steps}
        if self.job.kind == "decode":  # a row is read again for each token
            return {"rows": len(self.rows) * self.settings.new_tokens}
        if self.job.kind == "evaluate":
            return {"rows": len(self.rows)}
        return {"rows": len(self.rows) * self.job.epochs, "steps": self.steps}

    def title(self) -> str:
        """The job in words, with its amount."""
        job, rows = self.job, len(self.rows)
        if job.kind == "step":
            return job.words
        if job.kind == "decode":
            return f"{job.words}: {rows} by {self.settings.new_tokens} tokens each"
        return f"{job.words}: {rows:,} rows, batch {job.batch_size}"


def read_rows(task: str, split: str, folder: Path) -> list[Record]:
    """All rows of a task's file as the texts that a model reads; without labels label 0."""
    if task in NUM_LABELS:
        labels = None if split == "test" else NUM_LABELS[task]
        rows = read_sentiment(folder / data_file(task, split), labels)
        return [replace(row, label=row.label or 0) for row in rows]
    if task == "paraphrase":
        pairs = read_pairs(folder / data_file(task, split), labelled=True).records
        return [Record(p.sent_id, cloze_prompt(p.sentence1, p.sentence2), p.label) for p in pairs]
    if split == "train":
        return [replace(row, label=0) for row in read_sonnets(folder / data_file(task, "train"))]
    prompts = read_sonnets(folder / data_file(task, "test"))
    return [Record(prompt.sent_id, prompt_text(prompt), 0) for prompt in prompts]
