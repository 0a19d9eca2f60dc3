"""Texts are read once and encoded in batches beside each other, with the tokens of each alone."""

import itertools
import random
import threading

import pytest

from engine import texts as module
from engine.corpus import train_tokenizer
from engine.texts import AHEAD, SpooledTexts, batches, encoded

WORDS = ["thou", "é", "☃", "summer's", "day\n\n", "  ", "<|endoftext|>", "\r\n", "\u2028"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of one to a hundred words, among them empty ones."""
    draw = random.Random(0)
    return ["", *(" ".join(draw.choices(WORDS, k=1 + i % 100)) for i in range(300)), ""]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=300)


def test_spooled_texts_come_back_in_order_as_often_as_asked(texts, tmp_path):
    with SpooledTexts(iter(texts), tmp_path) as spooled:
        assert len(spooled) == len(texts)
        for _ in range(2):
            assert list(spooled.part()) == texts
        assert list(spooled.part(0, 7)) == texts[:7] and list(spooled.part(295)) == texts[295:]
        assert list(itertools.islice(spooled.part(3), 2)) == texts[3:5]
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_file(texts, tmp_path):
    def broken():
        yield from texts
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SpooledTexts(broken(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 500, 10**9])
def test_tokens_are_those_of_each_text_alone_in_order(size, texts, tokenizer, monkeypatch):
    monkeypatch.setattr(module.batches, "__defaults__", (size,))
    found = [pair for batch in encoded(tokenizer, iter(texts)) for pair in batch]
    assert [text for text, _ in found] == texts
    assert [ids for _, ids in found] == [tokenizer(text)["input_ids"] for text in texts]


def test_a_tokenizer_that_cuts_or_pads_by_itself_does_not_here(texts, tokenizer):
    expected = list(encoded(tokenizer, texts))
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert list(encoded(tokenizer, texts)) == expected


def test_batches_are_cut_by_their_characters():
    assert list(batches(["abc", "d", "ef", "", "ghijk", "l"], 4)) == [
        ["abc", "d"],
        ["ef", "", "ghijk"],
        ["l"],
    ]


def test_a_few_batches_are_under_way_and_no_more(monkeypatch):
    """However many texts there are, and while one is being waited for."""
    read, meanwhile = [], threading.Barrier(AHEAD, timeout=20)

    class Backend:
        def no_truncation(self): ...
        def no_padding(self): ...
        def encode_batch_fast(self, batch):
            if int(batch[0]) < AHEAD:
                meanwhile.wait()  # each of the first waits for the others
            return [type("Encoding", (), {"ids": [int(text)]}) for text in batch]

    monkeypatch.setattr(module.batches, "__defaults__", (1,))
    numbers = (read.append(i) or str(i) for i in range(100))
    tokenizer = type("Tokenizer", (), {"backend_tokenizer": Backend()})
    for i, batch in enumerate(encoded(tokenizer, numbers)):
        assert batch == [(str(i), [i])] and len(read) <= i + AHEAD + 1
    assert len(read) == 100
