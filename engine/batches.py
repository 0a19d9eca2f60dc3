"""From texts to length-bucketed batches: `texts ─tokenize once─▶ TokenDataset ─▶ batches`.

A batch is a dict: token_ids and attention_mask (b, t), padding on the right, labels (b,) or (b, t)
where there are any, sent_ids (a list of b strings) and indices (a list: the rows in the file).
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from engine.errors import InputError, some
from engine.length_buckets import LengthBuckets

IGNORED_LABEL = -100


class RaggedRows:
    """Rows of ints of different lengths in one flat array; a row is a view of it."""

    def __init__(self, rows: list[list[int]]):
        self.ends = list(np.cumsum([0, *map(len, rows)]).tolist())
        self.flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=self.ends[-1])

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.ends[index] : self.ends[index + 1]]

    def tolist(self) -> list[list[int]]:
        return [self[i].tolist() for i in range(len(self))]


class TokenDataset(Dataset):
    """Texts as token ids, tokenized once. labels: ints, lists of t ints, or None for test data."""

    def __init__(self, token_ids: list[list[int]], sent_ids: list[str], labels: list | None = None):
        self.rows, self.sent_ids = RaggedRows(token_ids), sent_ids
        per_token = bool(labels) and isinstance(labels[0], list)
        self.row_labels = RaggedRows(labels) if per_token else labels

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {
            "index": index,
            "sent_id": self.sent_ids[index],
            "label": None if self.row_labels is None else self.row_labels[index],
            "token_ids": self.rows[index],
        }

    @property
    def token_ids(self) -> list[list[int]]:
        return self.rows.tolist()

    @property
    def labels(self) -> list | None:
        per_token = isinstance(self.row_labels, RaggedRows)
        return self.row_labels.tolist() if per_token else self.row_labels

    @cached_property
    def lengths(self) -> list[int]:
        return np.diff(self.rows.ends).tolist()

    @cached_property
    def _digest(self) -> str:
        content = repr((self.token_ids, self.sent_ids, self.labels)).encode()
        return hashlib.sha256(content).hexdigest()

    def fingerprint(self) -> str:
        """A hash of all that training sees, by which a resumed run knows its own data."""
        return self._digest


def tokenize(
    tokenizer,
    texts: list[str],
    sent_ids: list[str],
    limit: int,
    *,
    where="the texts",
    say: Callable | None = None,
    shorten: Callable | None = None,
) -> list[list[int]]:
    """Token ids of each text; none at all, or more than `limit`, are an error.

    where: the texts' file, for that error. With `say` a text that is too long is cut, and `say`
    gets a line about all of these: it keeps its first tokens, as the course has it, or becomes what
    shorten(its place in the list) gives.
    """
    token_ids, long = tokenizer(texts)["input_ids"], []
    for i, sent_id in enumerate(sent_ids):
        if len(token_ids[i]) > limit and say:
            long.append(sent_id)
            token_ids[i] = shorten(i) if shorten else token_ids[i][:limit]
        if not 0 < len(token_ids[i]) <= limit:
            raise InputError(
                f"{where}, row {sent_id}: {len(token_ids[i])} tokens, expected 1 to {limit}, as "
                f"many as the model has positions: mend this row"
            )
    if long:
        say(f"{where}: {len(long)} rows are cut to {limit} tokens: {some(long)}")
    return token_ids


def next_token_labels(token_ids: list[int]) -> list[int]:
    """The token that follows each position; nothing follows the last."""
    return [*token_ids[1:], IGNORED_LABEL]


def next_token_loss(logits, labels, reduction: str = "mean"):
    """Cross-entropy of logits (b, t, v) against labels (b, t), in nats.

    labels[:, i] is the token that follows position i, or IGNORED_LABEL where nothing is learnt.
    """
    return F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )


class TokenScores(NamedTuple):
    """What a step needs to know of next tokens' logits, which then need not all be there at once.

    loss: the cross-entropy summed over the labels, in nats; correct: how many labels are the
    likeliest token.
    """

    loss: torch.Tensor
    correct: torch.Tensor


def collate(examples: list[dict]) -> dict:
    """Pad b examples on the right into one batch (module docstring); an empty list has b = 0."""
    lengths = np.array([len(example["token_ids"]) for example in examples], dtype=np.int64)
    t = int(lengths.max(initial=1))
    labels = [example["label"] for example in examples]
    batch = {
        "token_ids": _padded([example["token_ids"] for example in examples], t, 0),
        "attention_mask": (np.arange(t) < lengths[:, None]).astype(np.int64),
    }
    if labels and np.ndim(labels[0]) == 1:
        batch["labels"] = _padded(labels, t, IGNORED_LABEL)
    elif None not in labels:
        batch["labels"] = np.array(labels, dtype=np.int64)
    return {name: torch.from_numpy(array) for name, array in batch.items()} | {
        "sent_ids": [example["sent_id"] for example in examples],
        "indices": [example["index"] for example in examples],
    }


def _padded(rows: list, t: int, fill: int) -> np.ndarray:
    """Rows of at most t ints as (b, t)."""
    array = np.full((len(rows), t), fill, dtype=np.int64)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array


class BatchLoader:
    """Batches of a data set in the order of a sampler, each put together when it is its turn.

    It draws nothing, so that a resumed run may skip batches.
    """

    follows_model = False  # whether its batches depend on the model's weights at the time

    def __init__(self, dataset, batch_sampler, collate: Callable[[list], dict]):
        self.dataset, self.batch_sampler, self.collate = dataset, batch_sampler, collate

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict]:
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[dict]:
        """All batches from the first-th on; those before are not put together."""
        for rows in islice(self.batch_sampler, first, None):
            yield self.collate([self.dataset[row] for row in rows])

    def groups(self, size: int, *, first: int = 0) -> Iterator[list[dict]]:
        """Lists of `size` batches, the last one perhaps of fewer, from the first-th list on."""
        batches = self.batches(first * size)
        while group := list(islice(batches, size)):
            yield group

    def watched(self, note: Callable[[dict], None]) -> "BatchLoader":
        """The same batches; `note` is called with each when it is put together."""

        def collate(examples: list) -> dict:
            batch = self.collate(examples)
            note(batch)
            return batch

        return BatchLoader(self.dataset, self.batch_sampler, collate)


def make_loader(dataset, batch_size, *, seed=0, shuffle=False, rank=0, workers=1) -> BatchLoader:
    """The length buckets of a TokenDataset."""
    buckets = LengthBuckets(
        dataset.lengths, batch_size, seed=seed, shuffle=shuffle, rank=rank, workers=workers
    )
    return BatchLoader(dataset, buckets, collate=collate)


def forward_tokens(model, batch: dict):
    """The usual inputs of a task's model."""
    return model(batch["token_ids"], batch["attention_mask"])


def count_targets(batch: dict) -> int:
    return int((batch["labels"] != IGNORED_LABEL).sum())


def split_batch(batch: dict, rows: int | None) -> list[dict]:
    """Cut a batch into pieces of at most `rows` rows; None leaves it whole."""
    size = len(batch["sent_ids"])
    if rows is None or size <= rows:
        return [batch]
    starts = range(0, size, rows)
    return [{key: value[i : i + rows] for key, value in batch.items()} for i in starts]


def to_device(batch: dict, device) -> dict:
    """The batch there; padding that is not on the right is refused, since models rely on it."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.device.type == "cpu" and not is_right_padded(mask):
        raise ValueError("a batch must be padded on the right")
    return {
        key: _moved(value, device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def _moved(tensor, device):
    if torch.device(device).type == "cuda":  # from pinned memory, so that nobody waits for the copy
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_right_padded(attention_mask) -> bool:
    """Whether every row of (b, t) is ones, then zeros. On a GPU, looking at it waits for it."""
    return bool((attention_mask[..., 1:] <= attention_mask[..., :-1]).all())
