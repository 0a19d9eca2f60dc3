"""Which rows stand together in a batch: rows of nearly equal length, in a random order."""

import torch
from torch.utils.data import Sampler

WINDOW = 50  # batches: sorting by length happens inside windows of so many


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
