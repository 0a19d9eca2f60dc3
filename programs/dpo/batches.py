"""Batches of preference pairs, and what a model says of both answers: log π(y|x).

In a batch of b pairs each tensor has b rows, so that no cut goes through a pair. What is said of
answers is (b, 2), the rejected one first: the label to be found is CHOSEN, and a tie misses it.
"""

import hashlib

import torch
from torch.utils.data import Dataset

from engine.batches import (
    IGNORED_LABEL,
    collate,
    forward_tokens,
    next_token_labels,
    next_token_loss,
    tokenize,
)
from engine.errors import InputError
from programs.dpo.losses import CHOSEN
from programs.dpo.pairs import Pair


class PairDataset(Dataset):
    """Pairs with their token ids; a subclass says what an answer is."""

    def __init__(self, pairs: list[Pair]):
        self.pairs = pairs
        self.texts: list[list[list[int]]] = []  # of each pair the rows that the model reads
        self.answers: list[list] = []  # of each pair [rejected, chosen]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        pair = self.pairs[index]
        return {
            "index": index,
            "sent_id": f"{pair.sent_id} {pair.kind}",
            "texts": self.texts[index],
            "answers": self.answers[index],
            "reference": pair.reference,
        }

    @property
    def lengths(self) -> list[int]:
        return [max(len(ids) for ids in texts) for texts in self.texts]

    def fingerprint(self) -> str:
        """A hash of all that training sees, by which a resumed run knows its own data."""
        references = [pair.reference for pair in self.pairs]
        return hashlib.sha256(repr((self.texts, self.answers, references)).encode()).hexdigest()


class TextPairs(PairDataset):
    """Answers are texts: a pair is two rows, each the prompt, an answer and one end token.

    Prompt and answer are tokenized each by itself, as they are when a model continues a prompt. A
    rejected answer that is too long for the model is cut, a chosen one is an error.
    """

    def __init__(self, pairs: list[Pair], tokenizer, limit: int, where):
        super().__init__(pairs)
        columns = [[getattr(p, name) for p in pairs] for name in ("prompt", "rejected", "chosen")]
        columns = [tokenizer(texts)["input_ids"] for texts in columns]
        for pair, prompt, *both in zip(pairs, *columns, strict=True):
            rows = [[*prompt, *answer, tokenizer.eos_token_id] for answer in both]
            if len(rows[CHOSEN]) > limit:
                raise InputError(
                    f"{where}, pair {pair.sent_id}: {len(rows[CHOSEN])} tokens, expected at most "
                    f"{limit}, as many as the model has positions: shorten its chosen answer"
                )
            rows = [row[:limit] for row in rows]
            before = [IGNORED_LABEL] * (len(prompt) - 1)
            self.texts.append(rows)
            self.answers.append([before + next_token_labels(row)[len(before) :] for row in rows])

    @staticmethod
    def collate(pairs: list[dict]) -> dict:
        """token_ids, attention_mask, answers (b, 2, t): answers are next tokens, or ignored."""
        rows = [
            {"index": pair["index"], "sent_id": "", "token_ids": ids, "label": labels}
            for pair in pairs
            for ids, labels in zip(pair["texts"], pair["answers"], strict=True)
        ]
        flat = collate(rows)
        shape = (len(pairs), 2, flat["token_ids"].shape[1])
        answers = flat["labels"].view(shape)
        return {
            "token_ids": flat["token_ids"].view(shape),
            "attention_mask": flat["attention_mask"].view(shape),
            "answers": answers,
            "answer_lengths": (answers != IGNORED_LABEL).sum(dim=-1),  # (b, 2)
            **_preferences(pairs),
        }

    @staticmethod
    def log_probs(model, batch: dict):
        """Summed over an answer's tokens (b, 2); those of the prompt and padding are no part."""
        names = ("token_ids", "attention_mask", "answers")
        rows = {name: batch[name].flatten(0, 1) for name in names}  # (2b, t)
        logits = forward_tokens(model, rows).float()  # (2b, t, v)
        losses = next_token_loss(logits, rows["answers"], reduction="none")
        return -losses.view(batch["answers"].shape).sum(dim=-1)


class WordPairs(PairDataset):
    """Answers are "no" and "yes", classes 0 and 1: one row, the prompt, serves for both."""

    def __init__(self, pairs: list[Pair], tokenizer, limit: int, where):
        super().__init__(pairs)
        classes = {"no": 0, "yes": 1}
        for pair in pairs:
            if {pair.chosen, pair.rejected} != classes.keys():
                raise InputError(
                    f"{where}, pair {pair.sent_id}: the answers {pair.chosen!r} and "
                    f"{pair.rejected!r}, expected 'yes' and 'no': mend it, or give --task sonnet"
                )
            self.answers.append([classes[pair.rejected], classes[pair.chosen]])
        prompts, ids = [pair.prompt for pair in pairs], [pair.sent_id for pair in pairs]
        self.texts = [[row] for row in tokenize(tokenizer, prompts, ids, limit, where=where)]

    @staticmethod
    def collate(pairs: list[dict]) -> dict:
        """token_ids, attention_mask (b, t); answers (b, 2) are classes."""
        rows = [
            {"index": pair["index"], "sent_id": "", "token_ids": pair["texts"][0], "label": CHOSEN}
            for pair in pairs
        ]
        flat = collate(rows)
        answers = torch.tensor([p["answers"] for p in pairs], dtype=torch.long).view(-1, 2)
        return {
            "token_ids": flat["token_ids"],
            "attention_mask": flat["attention_mask"],
            "answers": answers,
            "answer_lengths": torch.ones_like(answers),
            **_preferences(pairs),
        }

    @staticmethod
    def log_probs(model, batch: dict):
        """Of the two words, one of which the model always says: (b, 2)."""
        log_probs = forward_tokens(model, batch).float().log_softmax(dim=-1)
        return log_probs.gather(1, batch["answers"])


def _preferences(pairs: list[dict]) -> dict:
    """What batches of both sorts have: the label to be found, log π_ref (b, 2), ids."""
    batch = {
        "labels": torch.full((len(pairs),), CHOSEN),
        "sent_ids": [pair["sent_id"] for pair in pairs],
        "indices": [pair["index"] for pair in pairs],
    }
    references = [pair["reference"] for pair in pairs]
    if None not in references:
        batch["reference"] = torch.tensor(references, dtype=torch.float32).view(-1, 2)
    return batch
