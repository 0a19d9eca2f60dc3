"""From token ids to batches: each row once, little padding, an order that seed and epoch decide."""

import random

import pytest
import torch

from engine.batches import (
    IGNORED_LABEL,
    LengthBuckets,
    TokenDataset,
    collate,
    count_targets,
    make_loader,
    next_token_labels,
    split_batch,
    to_device,
    tokenize,
)
from engine.errors import InputError


def dataset_of(lengths, labels=None) -> TokenDataset:
    """Row i: `length` tokens, all i + 1."""
    token_ids = [[i + 1] * length for i, length in enumerate(lengths)]
    return TokenDataset(token_ids, [f"id{i}" for i in range(len(lengths))], labels)


def skewed_lengths(rows: int = 400) -> list[int]:
    """Many short texts and a few long ones, as in SST."""
    draw = random.Random(0)
    return [min(1 + int(draw.lognormvariate(3, 0.6)), 200) for _ in range(rows)]


def order(loader, epoch: int = 0) -> list[list[int]]:
    loader.batch_sampler.set_epoch(epoch)
    return [batch["indices"] for batch in loader]


def padding_factor(batches, lengths) -> float:
    cells = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return cells / sum(lengths)


# -- tokenizing --------------------------------------------------------------------------------


class CountingTokenizer:
    """One token a word; counts its calls and its texts."""

    calls = texts = 0

    def __call__(self, texts):
        self.calls += 1
        self.texts += len(texts)
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def test_texts_are_tokenized_once_whatever_the_number_of_epochs():
    tokenizer = CountingTokenizer()
    texts = ["a bb", "ccc", "d e f"]
    loader = make_loader(TokenDataset(tokenize(tokenizer, texts, list("xyz"), 5), list("xyz")), 2)
    for _ in range(4):
        assert sum(len(batch["sent_ids"]) for batch in loader) == 3
    assert (tokenizer.calls, tokenizer.texts) == (1, 3)


def test_a_text_of_exactly_the_model_s_positions_is_taken_and_a_longer_one_named():
    assert tokenize(CountingTokenizer(), ["a b c"], ["x"], 3) == [[1, 1, 1]]
    with pytest.raises(InputError, match="row x: 3 tokens, expected 1 to 2"):
        tokenize(CountingTokenizer(), ["a b c"], ["x"], 2)
    with pytest.raises(InputError, match="row y: 0 tokens, expected 1 to 2"):
        tokenize(CountingTokenizer(), ["a", " "], ["x", "y"], 2)


def test_a_text_that_is_too_long_keeps_its_first_tokens_where_somebody_is_told():
    said = []
    texts = ["a bb ccc", "dddd", "a bb ccc dddd"]
    found = tokenize(CountingTokenizer(), texts, list("xyz"), 2, where="f.csv", say=said.append)
    assert found == [[1, 2], [4], [1, 2]]
    assert said == ["f.csv: 2 rows are cut to 2 tokens: x, z"]
    with pytest.raises(InputError, match="row y: 0 tokens"):
        tokenize(CountingTokenizer(), ["a", " "], ["x", "y"], 2, say=said.append)


def test_of_many_texts_that_are_too_long_a_few_are_named():
    said, texts = [], ["a b c"] * 9
    tokenize(CountingTokenizer(), texts, list("abcdefghi"), 2, where="f.csv", say=said.append)
    assert said == ["f.csv: 9 rows are cut to 2 tokens: a, b, c, d, e, … 4 more"]


def test_next_token_labels_are_the_tokens_that_follow():
    assert next_token_labels([5, 6, 7]) == [6, 7, IGNORED_LABEL]
    assert next_token_labels([5]) == [IGNORED_LABEL]


# -- collate -----------------------------------------------------------------------------------


def test_collate_pads_on_the_right():
    batch = collate([dataset_of([2, 3, 1], labels=[4, 0, 2])[i] for i in (0, 2, 1)])
    assert batch["token_ids"].tolist() == [[1, 1, 0], [3, 0, 0], [2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [4, 2, 0]
    assert (batch["sent_ids"], batch["indices"]) == (["id0", "id2", "id1"], [0, 2, 1])
    assert {batch[k].dtype for k in ("token_ids", "attention_mask", "labels")} == {torch.int64}


def test_collate_marks_padding_in_token_labels_as_ignored():
    dataset = dataset_of([2, 3], labels=[[1, IGNORED_LABEL], [2, 2, IGNORED_LABEL]])
    batch = collate([dataset[0], dataset[1]])
    assert batch["labels"].tolist() == [[1, -100, -100], [2, 2, -100]]
    assert batch["labels"].dtype == torch.int64
    assert count_targets(batch) == 3


def test_collate_leaves_labels_out_where_there_are_none():
    assert "labels" not in collate([dataset_of([2])[0]])


def test_an_empty_batch_has_no_rows():
    """A worker's share of a small last batch may be empty."""
    batch = collate([])
    assert batch["token_ids"].shape == batch["attention_mask"].shape == (0, 1)
    assert batch["labels"].shape == (0,) and batch["labels"].dtype == torch.int64
    assert batch["sent_ids"] == batch["indices"] == []
    assert count_targets(batch) == 0


# -- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rows, batch_size", [(1, 8), (8, 8), (401, 8), (50, 1), (7, 100)])
def test_every_row_comes_exactly_once_in_every_epoch(rows, batch_size, shuffle):
    loader = make_loader(dataset_of(skewed_lengths(rows)), batch_size, shuffle=shuffle)
    for epoch in range(3):
        batches = order(loader, epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
        assert len(batches) == len(loader)
        assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)


def test_the_order_is_that_of_seed_and_epoch_and_differs_between_them():
    dataset = dataset_of(skewed_lengths())
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1, 2):
            orders[seed, epoch] = order(make_loader(dataset, 8, seed=seed, shuffle=True), epoch)
    distinct = {str(batches) for batches in orders.values()}
    assert len(distinct) == len(orders)
    again = make_loader(dataset, 8, seed=2, shuffle=True)
    order(again, 0)  # what was read before does not matter
    assert order(again, 2) == orders[2, 2]


def test_the_rows_of_a_batch_differ_from_epoch_to_epoch_even_when_all_are_equally_long():
    """Sorting by length must not bring the file's own neighbours together."""
    loader = make_loader(dataset_of([5] * 400), 8, shuffle=True)
    together = [{frozenset(batch) for batch in order(loader, epoch)} for epoch in range(3)]
    assert not together[0] & together[1] and not together[1] & together[2]
    assert not any(max(batch) - min(batch) < 8 for batch in together[0])


def test_batches_of_long_and_short_texts_are_mixed_within_an_epoch():
    """Not from short to long: the first and second half of an epoch look alike."""
    lengths = skewed_lengths()
    rows = [
        lengths[row]
        for batch in order(make_loader(dataset_of(lengths), 8, shuffle=True))
        for row in batch
    ]
    halves = [sum(part) / len(part) for part in (rows[:200], rows[200:])]
    assert 0.6 < halves[0] / halves[1] < 1.6


@pytest.mark.parametrize("shuffle", [True, False])
def test_length_buckets_leave_almost_no_padding(shuffle):
    lengths = skewed_lengths()
    batches = order(make_loader(dataset_of(lengths), 8, shuffle=shuffle))
    assert padding_factor(batches, lengths) < 1.05
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
    at_random = [rows[i : i + 8] for i in range(0, 400, 8)]
    assert padding_factor(at_random, lengths) > 1.3


def test_without_shuffling_the_order_is_the_same_in_every_epoch():
    loader = make_loader(dataset_of(skewed_lengths(50)), 8)
    assert order(loader, 0) == order(loader, 1)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_batches_of_one_worker_with_larger_ones(workers):
    lengths = skewed_lengths(101)
    alone = list(LengthBuckets(lengths, 8 * workers, seed=3))
    shares = [
        list(LengthBuckets(lengths, 8, seed=3, rank=r, workers=workers)) for r in range(workers)
    ]
    assert {len(share) for share in shares} == {len(alone)}  # else one would wait for the others
    for i, batch in enumerate(alone):
        assert sorted(row for share in shares for row in share[i]) == sorted(batch)


def test_reading_batches_leaves_torch_s_random_state_alone():
    """Else a resumed run, which skips batches, would draw another dropout."""
    loader = make_loader(dataset_of(skewed_lengths(50)), 8, shuffle=True)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for epoch in range(2):
        order(loader, epoch)
    assert torch.equal(torch.get_rng_state(), before)


def test_skipped_batches_are_not_put_together():
    loader, made = make_loader(dataset_of(skewed_lengths(50)), 8, shuffle=True), []
    watched = loader.watched(lambda batch: made.append(batch["indices"]))
    whole = [batch["indices"] for batch in loader]
    assert [batch["indices"] for batch in watched.batches(first=4)] == whole[4:] == made
    groups = [[batch["indices"] for batch in group] for group in loader.groups(3, first=1)]
    assert groups == [whole[3:6], whole[6:]] and len(whole) == 7


# -- fingerprint, splitting, counting ----------------------------------------------------------


def test_the_fingerprint_changes_with_anything_that_training_sees():
    def fingerprint(token_ids=([1, 2], [3]), sent_ids=("a", "b"), labels=(0, 1)):
        return TokenDataset(list(token_ids), list(sent_ids), labels and list(labels)).fingerprint()

    changed = [
        fingerprint(),
        fingerprint(token_ids=([1, 2], [4])),
        fingerprint(token_ids=([1], [2, 3])),
        fingerprint(token_ids=([3], [1, 2])),
        fingerprint(sent_ids=("a", "c")),
        fingerprint(labels=(0, 0)),
        fingerprint(labels=None),
    ]
    assert len(set(changed)) == len(changed)
    assert fingerprint() == fingerprint()


def test_a_split_batch_has_the_same_rows_in_order():
    dataset = dataset_of([2, 3, 1, 3, 2], labels=[0, 1, 2, 3, 4])
    batch = collate([dataset[i] for i in range(5)])
    pieces = split_batch(batch, 2)
    assert [len(piece["sent_ids"]) for piece in pieces] == [2, 2, 1]
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(torch.cat([piece[key] for piece in pieces]), value)
        else:
            assert [item for piece in pieces for item in piece[key]] == value
    assert split_batch(batch, None) == [batch] and split_batch(batch, 5) == [batch]


def test_targets_are_the_labels_that_are_not_ignored():
    assert count_targets({"labels": torch.tensor([0, 1, 4])}) == 3
    assert count_targets({"labels": torch.tensor([[7, -100], [0, 3]])}) == 3


# -- on the way to a GPU -----------------------------------------------------------------------


def test_a_batch_that_is_padded_on_the_left_is_refused():
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    batch = {"token_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": mask}
    with pytest.raises(ValueError, match="right"):
        to_device(batch, torch.device("cpu"))
    to_device(batch | {"attention_mask": mask.flip(1)}, torch.device("cpu"))
