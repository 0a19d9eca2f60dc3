"""Text becomes tokens and full blocks: nothing lost, nothing twice, order by seed and pass."""

import gzip
import json
import lzma

import numpy as np
import pytest
import torch
from course_files import VERSES, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engine.corpus import (
    BlockBatches,
    TokenBlocks,
    collate_blocks,
    documents,
    facts_path,
    split_texts,
    train_tokenizer,
    write_tokens,
)
from engine.errors import InputError

TEXTS = [f"{verse},\n and {verse} – again" for verse in VERSES] * 3
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture
def blocks(tokenizer, tmp_path):
    write_tokens(tmp_path / "t.bin", tokenizer, TEXTS)
    return TokenBlocks(tmp_path / "t.bin", 8)


# -- documents ---------------------------------------------------------------------------------


def test_a_line_with_only_the_end_token_separates_documents(tmp_path):
    text = f"one\ntwo\n{END}\n\nthree {END} still\n  {END}  \n{END}\n\n{END}\nlast"
    path = write(tmp_path / "a.txt", text)
    assert list(documents([path])) == ["one\ntwo", f"three {END} still", "last"]


def test_files_follow_each_other_and_may_be_compressed(tmp_path):
    text = f"é one\n{END}\ntwo\n".encode()
    plain, packed, zipped = (tmp_path / f"a.txt{end}" for end in ("", ".xz", ".gz"))
    plain.write_bytes(text)
    packed.write_bytes(lzma.compress(text))
    zipped.write_bytes(gzip.compress(text))
    assert list(documents([plain, str(packed), zipped])) == ["é one", "two"] * 3


PACKERS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


@pytest.mark.parametrize("end", PACKERS)
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, end):
    """At the start of each file; there it would also hide a line with the end token."""
    paths = [tmp_path / f"{name}.txt{end}" for name in "ab"]
    paths[0].write_bytes(PACKERS[end](f"one\n{END}\ntwo \ufeff".encode("utf-8-sig")))
    paths[1].write_bytes(PACKERS[end](f"{END}\nthree\n".encode("utf-8-sig")))
    assert list(documents(paths)) == ["one", "two \ufeff", "three"]


@pytest.mark.parametrize("name", ["a.txt.xz", "a.txt.gz", "a.txt"])
def test_a_broken_file_is_named(tmp_path, name):
    pack = {"xz": lzma.compress, "gz": gzip.compress}.get(name.split(".")[-1])
    whole = "one line\n" * 5000
    data = pack(whole.encode())[:-30] if pack else b"fine\n\xff\xfe\n"
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}, after line \d+: cannot be read"):
        list(documents([tmp_path / name]))
    with pytest.raises(InputError, match="nowhere: no such file"):
        list(documents([tmp_path / "nowhere"]))


@pytest.mark.parametrize("texts", [TEXTS, ["☃é" * 500], ["a", "long " * 50, "b"], ["ab", "c"]])
def test_texts_are_cut_at_a_share_of_their_tokens_and_nothing_is_lost(texts, tokenizer):
    before, after = split_texts(texts, 0.9, tokenizer)
    assert "".join([*before, *after]) == "".join(texts) and all([*before, *after])
    assert before[:-1] == texts[: len(before) - 1]
    assert after[1:] == texts[len(texts) - len(after) + 1 :]
    counts = [sum(len(tokenizer(text)["input_ids"]) for text in part) for part in (before, after)]
    assert counts[0] == pytest.approx(0.9 * sum(counts), abs=4)


def test_without_a_tokenizer_texts_are_cut_at_a_share_of_their_characters():
    assert split_texts(["abc", "defghij"], 0.9) == (["abc", "defghi"], ["j"])
    assert split_texts(["abcdefghi", "j"], 0.9) == (["abcdefghi"], ["j"])
    assert split_texts(["a"], 0.9) == ([], ["a"])


# -- the tokenizer -----------------------------------------------------------------------------


def test_every_text_comes_back_and_the_vocabulary_is_as_large_as_asked(tokenizer):
    assert len(tokenizer) == 320
    for text in [*TEXTS, "ünknown wörds ☃\t\n  and spaces ", "yes", "NO?"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == END
    assert tokenizer(END)["input_ids"] == [tokenizer.eos_token_id]


def test_yes_and_no_are_one_token_each(tokenizer):
    ids = [tokenizer(word)["input_ids"] for word in ("yes", "no")]
    assert [len(i) for i in ids] == [1, 1] and ids[0] != ids[1]


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    again = train_tokenizer(TEXTS, vocab_size=320)
    assert again.get_vocab() == tokenizer.get_vocab()


# -- token files -------------------------------------------------------------------------------


def test_a_token_file_is_all_documents_each_with_an_end_token_behind(tokenizer, tmp_path):
    write_tokens(tmp_path / "t.bin", tokenizer, iter(TEXTS * 30))  # more than one chunk
    tokens = np.fromfile(tmp_path / "t.bin", dtype=np.uint16)
    text = tokenizer.decode(tokens.tolist())
    assert text == "".join(f"{text}{END}" for text in TEXTS * 30)
    facts = json.loads(facts_path(tmp_path / "t.bin").read_text(encoding="utf-8"))
    assert facts["documents"] == len(TEXTS) * 30
    assert facts["tokens"] == len(tokens)
    assert facts["bytes"] == sum(len(text.encode()) for text in TEXTS * 30)


def test_a_large_vocabulary_gets_four_bytes_a_token(tmp_path):
    class Large:
        eos_token_id = 70_000

        def __init__(self):
            self.backend_tokenizer = Tokenizer(WordLevel({"a": 65_536, "b": 1}, unk_token="a"))

        def __len__(self):
            return 70_001

    write_tokens(tmp_path / "t.bin", Large(), ["a", "b"])
    tokens = TokenBlocks(tmp_path / "t.bin", 3).tokens
    assert tokens.tolist() == [65_536, 70_000, 1, 70_000]


def test_an_interrupted_writing_leaves_no_file(tokenizer, tmp_path):
    def broken():
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "t.bin", tokenizer, broken())
    assert list(tmp_path.iterdir()) == []


# -- blocks ------------------------------------------------------------------------------------


def test_blocks_tile_the_text_and_labels_are_the_tokens_that_follow(blocks):
    tokens = torch.tensor(blocks.tokens.astype(np.int64))
    assert len(blocks) == (len(tokens) - 1) // 8
    joined = torch.cat([blocks[i]["token_ids"] for i in range(len(blocks))])
    labels = torch.cat([blocks[i]["labels"] for i in range(len(blocks))])
    assert torch.equal(joined, tokens[: len(joined)])
    assert torch.equal(labels, tokens[1 : len(joined) + 1])


def test_the_tokens_stay_on_the_disk(blocks):
    assert isinstance(blocks.tokens, np.memmap)


def test_a_part_of_the_blocks_is_spread_over_the_file(blocks, tmp_path):
    part = TokenBlocks(tmp_path / "t.bin", 8, most=5)
    assert len(part) == 5 and part.starts[0] == 0
    gaps = np.diff(part.starts)
    assert gaps.min() >= len(blocks) // 5 * 8 and part.starts[-1] < len(blocks) * 8
    assert len(TokenBlocks(tmp_path / "t.bin", 8, most=10_000)) == len(blocks)


def test_too_short_a_text_is_refused(tmp_path, tokenizer):
    write_tokens(tmp_path / "t.bin", tokenizer, ["a"])
    with pytest.raises(InputError, match=r"2 tokens do not fill a block of 8, which takes 9: give"):
        TokenBlocks(tmp_path / "t.bin", 8)


def test_another_text_or_block_has_another_fingerprint(blocks, tokenizer, tmp_path):
    write_tokens(tmp_path / "u.bin", tokenizer, [*TEXTS[:-1], TEXTS[-1].replace("–", "-")])
    prints = {
        TokenBlocks(tmp_path / name, t).fingerprint() for name in ("t.bin", "u.bin") for t in (8, 4)
    }
    assert len(prints) == 4 and blocks.fingerprint() in prints


def test_collating_stacks_blocks(blocks):
    batch = collate_blocks([blocks[2], blocks[0]])
    assert batch["token_ids"].shape == batch["labels"].shape == (2, 8)
    assert batch["sent_ids"] == ["block 2", "block 0"]
    assert torch.equal(batch["token_ids"][1, 1:], batch["labels"][1, :-1])


# -- the order ---------------------------------------------------------------------------------


def drawn(sampler, epochs: int) -> list[list[int]]:
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches += list(sampler)
    return batches


def test_every_pass_sees_each_block_once_in_an_order_of_its_own():
    """Epochs of 4 batches of 3 do not fit 10 blocks: passes run on from epoch to epoch."""
    rows = [row for batch in drawn(BlockBatches(10, 3, 4, seed=1), 5) for row in batch]
    passes = [rows[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 6


def test_the_seed_decides_the_order():
    one, same, other = (drawn(BlockBatches(50, 4, 6, seed=s), 2) for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_batches_of_one(workers):
    whole = drawn(BlockBatches(29, 4 * workers, 5, seed=3), 2)
    shares = [
        drawn(BlockBatches(29, 4, 5, seed=3, rank=rank, workers=workers), 2)
        for rank in range(workers)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part) == 4 for part in parts)
        assert sorted(row for part in parts for row in part) == sorted(batch)
