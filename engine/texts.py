"""Texts on their way to tokens: read once, encoded by all cores, in order and in little memory."""

import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

BATCH = 2**20  # characters encoded together: many texts, shared out to the cores
AHEAD = 3  # batches being encoded while Python takes over the tokens of one before


class SpooledTexts:
    """Texts in order, as UTF-8 in a nameless file below a folder, which goes when this is closed.

    Compressed files and documents are taken apart once, however often the texts are read.
    """

    def __init__(self, texts: Iterable[str], folder):
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.ends = array("Q", [0])  # bytes
        for text in texts:
            self.ends.append(self.ends[-1] + self.file.write(text.encode()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __len__(self):
        return len(self.ends) - 1

    def part(self, first: int = 0, last: int | None = None) -> Iterator[str]:
        """Texts first to last − 1, by default all."""
        last = len(self) if last is None else last
        for start, end in pairwise(self.ends[first : last + 1]):
            self.file.seek(start)
            yield self.file.read(end - start).decode()


def encoded(tokenizer, texts: Iterable[str]) -> Iterator[list[tuple[str, list[int]]]]:
    """Batches of texts with their token ids, whole texts in their order.

    The `tokenizers` library shares a batch out to threads and needs no lock of Python's meanwhile;
    what Python does with the tokens of one batch goes on beside the next ones.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    waiting: deque = deque()

    def finished() -> list[tuple[str, list[int]]]:
        batch, encodings = waiting.popleft()
        return [(t, e.ids) for t, e in zip(batch, encodings.result(), strict=True)]

    with ThreadPoolExecutor(AHEAD) as pool:
        for batch in batches(texts):
            waiting.append((batch, pool.submit(backend.encode_batch_fast, batch)))
            if len(waiting) > AHEAD:
                yield finished()
        while waiting:
            yield finished()


def batches(texts: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    """The texts in lists of `size` characters or a little more."""
    batch, length = [], 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
