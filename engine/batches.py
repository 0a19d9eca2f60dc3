"""From texts to length-bucketed batches: `texts ─tokenise once─▶ TokenDataset ─▶ batches`.

A batch is a dict: token_ids and attention_mask (b, t), padding on the right, labels (b,) or (b, t)
where there are any, sent_ids (a list of b strings) and indices (a list: the rows in the file).
"""

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from engine.errors import InputError, some

IGNORED_LABEL = -100
WINDOW = 50  # batches: sorting by length happens inside windows of so many


class TokenDataset(Dataset):
    """Texts as token ids, tokenised once. labels: ints, lists of t ints, or None for test data."""

    def __init__(self, token_ids: list[list[int]], sent_ids: list[str], labels: list | None = None):
        self.token_ids, self.sent_ids, self.labels = token_ids, sent_ids, labels

    def __len__(self):
        return len(self.token_ids)

    def __getitem__(self, index: int) -> dict:
        label = None if self.labels is None else self.labels[index]
        return {
            "index": index,
            "sent_id": self.sent_ids[index],
            "label": label,
            "token_ids": self.token_ids[index],
        }

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.token_ids]

    def fingerprint(self) -> str:
        """A hash of all that training sees, by which a resumed run knows its own data."""
        content = repr((self.token_ids, self.sent_ids, self.labels)).encode()
        return hashlib.sha256(content).hexdigest()


def tokenise(
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


def collate(examples: list[dict], multiple: int = 1) -> dict:
    """Pad b examples on the right into one batch (module docstring); an empty list has b = 0.

    t is the longest one's length, rounded up to a multiple.
    """
    t = max((len(example["token_ids"]) for example in examples), default=1)
    t = -(-t // multiple) * multiple
    token_ids = torch.zeros(len(examples), t, dtype=torch.long)
    attention_mask = torch.zeros(len(examples), t, dtype=torch.long)
    labels = [example["label"] for example in examples]
    per_token = bool(labels) and isinstance(labels[0], list)
    if per_token:
        padded = torch.full((len(examples), t), IGNORED_LABEL)
    for row, example in enumerate(examples):
        length = len(example["token_ids"])
        token_ids[row, :length] = torch.tensor(example["token_ids"])
        attention_mask[row, :length] = 1
        if per_token:
            padded[row, :length] = torch.tensor(labels[row])
    batch = {
        "token_ids": token_ids,
        "attention_mask": attention_mask,
        "sent_ids": [example["sent_id"] for example in examples],
        "indices": [example["index"] for example in examples],
    }
    if per_token:
        batch["labels"] = padded
    elif None not in labels:
        batch["labels"] = torch.tensor(labels, dtype=torch.long)
    return batch


class LengthBuckets(Sampler):
    """Batches of rows of nearly equal length, in an order that a seed and an epoch decide.

    Shuffled rows are sorted by length inside windows of 50 batches, cut, and the batches shuffled:
    padding falls to a few percent while batches stay random. Without shuffling, rows are sorted
    over the whole set. With several workers, batch_size rows go to each, out of common batches of
    batch_size · workers rows, so that the workers together do what one would with large batches.
    """

    def __init__(self, lengths, batch_size, *, seed=0, shuffle=True, rank=0, workers=1):
        self.lengths, self.batch_size, self.seed = lengths, batch_size * workers, seed
        self.shuffle, self.rank, self.workers, self.epoch = shuffle, rank, workers, 0

    def __len__(self):
        return -(-len(self.lengths) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        for batch in self._batches():
            yield batch[self.rank :: self.workers]

    def _batches(self) -> list[list[int]]:
        rows = list(range(len(self.lengths)))
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.shuffle:
            rows = torch.randperm(len(rows), generator=random).tolist()
        window = WINDOW * self.batch_size if self.shuffle else max(len(rows), 1)
        batches = []
        for start in range(0, len(rows), window):
            ordered = sorted(rows[start : start + window], key=self.lengths.__getitem__)
            cuts = range(0, len(ordered), self.batch_size)
            batches += [ordered[cut : cut + self.batch_size] for cut in cuts]
        if self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=random).tolist()]
        return batches


def make_loader(
    dataset, batch_size, *, seed=0, shuffle=False, rank=0, workers=1, multiple=1
) -> DataLoader:
    """A DataLoader over length buckets of a TokenDataset; multiple: see `collate`."""
    buckets = LengthBuckets(
        dataset.lengths, batch_size, seed=seed, shuffle=shuffle, rank=rank, workers=workers
    )
    return batch_loader(dataset, buckets, collate=partial(collate, multiple=multiple))


def batch_loader(dataset, batch_sampler, *, collate) -> DataLoader:
    """A DataLoader whose own generator leaves torch's global one alone."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


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
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def is_right_padded(attention_mask) -> bool:
    """Whether every row of (b, t) is ones, then zeros. On a GPU, looking at it waits for it."""
    return bool((attention_mask[..., 1:] <= attention_mask[..., :-1]).all())
