"""Plain text for pre-training: documents, a byte-level BPE, memory-mapped tokens, full blocks.

    files ─documents─▶ texts ─tokenize─▶ d₁ ∎ d₂ ∎ … ─cut─▶ blocks of t tokens and the t that follow

Documents stand one after the other with an end token behind each and fill every block: no padding,
and nothing hides one document from the next. Brown et al. 2020 ("GPT-3"), appendix B.
"""

import gzip
import hashlib
import itertools
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from engine.errors import InputError, excerpt, quoted
from engine.files import atomic_write
from engine.texts import encoded

END_OF_TEXT = "<|endoftext|>"
UNREADABLE = (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)
OPENERS = {".xz": lzma.open, ".gz": gzip.open}
FACTS = {"documents": int, "bytes": int, "tokens": int, "dtype": str, "sha256": str}
ANSWERS = ["yes", "no"] * 5000  # often enough to become one token each: the cloze answers by them


def documents(paths: Iterable) -> Iterator[str]:
    """The documents of UTF-8 files, which may be compressed (.xz, .gz) and begin with a mark (BOM).

    A line that holds only <|endoftext|> separates them.
    """
    for path in map(Path, paths):
        lines, number = [], 0
        try:
            with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):  # noqa: B007
                    if line.strip() != END_OF_TEXT:
                        lines.append(line)
                    elif text := "".join(lines).strip():
                        yield text
                        lines = []
        except (FileNotFoundError, IsADirectoryError) as error:
            raise InputError(f"{path}: no such file: give text files by --text") from error
        except UNREADABLE as error:
            raise InputError(
                f"{path}, after line {number}: cannot be read ({excerpt(error)}): give "
                f"whole files of UTF-8"
            ) from error
        if text := "".join(lines).strip():
            yield text


def split_texts(texts: list[str], share: float, tokenizer=None) -> tuple[list[str], list[str]]:
    """The first `share` of all tokens as text, and the rest; the text on the border is cut in two.

    No character is cut. Without a tokenizer, characters are counted instead of tokens.
    """

    def tokens(text: str):
        return tokenizer(text, verbose=False)

    sizes = [len(tokens(text)["input_ids"] if tokenizer else text) for text in texts]
    i, left = 0, int(share * sum(sizes))
    while left >= sizes[i]:
        i, left = i + 1, left - sizes[i]
    cut = tokens(texts[i]).token_to_chars(left).start if tokenizer else left
    before = [*texts[:i], texts[i][:cut]]
    return before if cut else before[:-1], [texts[i][cut:], *texts[i + 1 :]]


def train_tokenizer(texts: Iterable[str], vocab_size: int):
    """GPT-2's kind of tokenizer, a byte-level BPE, learnt from texts; "yes" and "no" are tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(itertools.chain(texts, ANSWERS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def save_tokenizer(tokenizer, folder) -> None:
    """Write a tokenizer under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = ("bos_token", "eos_token", "pad_token", "model_max_length")
    settings = {name: settings[name] for name in kept if name in settings}
    with atomic_write(path) as file:
        json.dump(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}, file, indent=2)
        file.write("\n")


def write_tokens(path, tokenizer, texts: Iterable[str]) -> None:
    """Write all texts' tokens, an end token behind each, as PATH and its facts as PATH.json.

    The facts come last: a file that has them is whole.
    """
    path = Path(path)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    facts = {"documents": 0, "bytes": 0, "tokens": 0}
    digest = hashlib.sha256()
    with atomic_write(path, "wb") as file:
        for batch in encoded(tokenizer, texts):
            for text, ids in batch:
                data = np.array([*ids, tokenizer.eos_token_id], dtype=dtype).tobytes()
                file.write(data)
                digest.update(data)
                facts["documents"] += 1
                facts["bytes"] += len(text.encode())
                facts["tokens"] += len(ids) + 1
    facts |= {"dtype": np.dtype(dtype).name, "sha256": digest.hexdigest()}
    with atomic_write(facts_path(path)) as file:
        json.dump(facts, file, indent=2)


def facts_path(path) -> Path:
    return Path(path).with_suffix(".json")


def read_facts(path) -> dict:
    """The facts of a token file, whose length must be as they say; its content is not looked at."""
    path, facts = Path(path), facts_path(path)
    remedy = f"delete the folder {path.parent} and repeat"
    try:
        found = json.loads(facts.read_text(encoding="utf-8"))
        size = found["tokens"] * {"uint16": 2, "uint32": 4}[found["dtype"]]
        right = all(type(found[name]) is kind for name, kind in FACTS.items())
        length = path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = excerpt(f"{type(error).__name__}: {error}")
        raise InputError(f"{facts}: no facts of a token file ({reason}): {remedy}") from error
    if not right or found["bytes"] < 1 or found["tokens"] < 1:
        raise InputError(f"{facts}: found {quoted(found)}, expected counts above 0: {remedy}")
    if length != size:
        raise InputError(f"{path}: {length:,} bytes, expected {size:,}: {remedy}")
    return found


def check_tokens(path, vocab_size: int) -> None:
    """Compare a token file with its checksum, and its tokens with the size of the vocabulary."""
    facts, digest, largest = read_facts(path), hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
            largest = max(largest, int(np.frombuffer(chunk, dtype=facts["dtype"]).max()))
    remedy = f"delete the folder {Path(path).parent} and repeat"
    if digest.hexdigest() != facts["sha256"]:
        raise InputError(f"{path}: its content differs from the checksum beside it: {remedy}")
    if largest >= vocab_size:
        raise InputError(f"{path}: found token {largest}, expected below {vocab_size}: {remedy}")


class TokenBlocks(Dataset):
    """Blocks of t tokens of a file that `write_tokens` wrote, which stays on the disk."""

    def __init__(self, path, t: int, most: int | None = None):
        """most: only so many blocks, spread over the file."""
        self.facts = read_facts(path)
        self.tokens = np.memmap(path, dtype=self.facts["dtype"], mode="r")
        self.t, blocks = t, (len(self.tokens) - 1) // t
        if blocks < 1:
            raise InputError(
                f"{path}: {len(self.tokens)} tokens do not fill a block of {t}, which takes "
                f"{t + 1}: give more text or a smaller --block"
            )
        count = min(blocks, most or blocks)
        self.starts = [t * (i * blocks // count) for i in range(count)]

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        start = self.starts[index]
        tokens = torch.from_numpy(self.tokens[start : start + self.t + 1].astype(np.int64))
        return {"index": index, "token_ids": tokens[:-1], "labels": tokens[1:]}

    @property
    def bytes_per_token(self) -> float:
        """Of UTF-8 text; the end token counts as a token of no bytes."""
        return self.facts["bytes"] / self.facts["tokens"]

    def fingerprint(self) -> str:
        """By which a resumed run knows its own data."""
        return f"{self.facts['sha256']} {self.t} {len(self)}"


def collate_blocks(blocks: list[dict]) -> dict:
    """b blocks as one batch: token_ids and labels (b, t), and what `fit` names in errors."""
    return {
        "token_ids": torch.stack([block["token_ids"] for block in blocks]),
        "labels": torch.stack([block["labels"] for block in blocks]),
        "sent_ids": [f"block {block['index']}" for block in blocks],
        "indices": [block["index"] for block in blocks],
    }


class BlockBatches(Sampler):
    """An epoch is a number of batches; passes over all blocks follow each other without a break.

    A seed decides each pass's order. With several workers, batch_size blocks go to each.
    """

    def __init__(self, blocks: int, batch_size: int, batches: int, *, seed=0, rank=0, workers=1):
        self.blocks, self.batch_size, self.batches = blocks, batch_size * workers, batches
        self.seed, self.rank, self.workers, self.epoch = seed, rank, workers, 0

    def __len__(self):
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        drawn = self._drawn(self.epoch * self.batches * self.batch_size)
        for _ in range(self.batches):
            batch = list(itertools.islice(drawn, self.batch_size))
            yield batch[self.rank :: self.workers]

    def _drawn(self, first: int) -> Iterator[int]:
        """Block numbers from the first-th draw on."""
        done, place = divmod(first, self.blocks)
        for number in itertools.count(done):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            yield from torch.randperm(self.blocks, generator=random).tolist()[place:]
            place = 0
