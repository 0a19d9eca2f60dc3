"""The starter's data: records, tokenized in every collate and padded to the longest of a batch.

See benchmarks/starter.py.
"""

import torch
from torch.utils.data import DataLoader, Dataset

NO, YES = 3919, 8505  # "no" and "yes" in GPT-2's vocabulary


class TextDataset(Dataset):
    """Records (text, label, id)."""

    def __init__(self, records, tokenizer):
        self.records = list(records)
        self.tokenizer = tokenizer

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def collate_fn(self, records):
        texts, labels, ids = zip(*records, strict=True)
        encoding = self.tokenizer(list(texts), return_tensors="pt", padding=True)
        return {
            "token_ids": encoding["input_ids"],
            "attention_mask": encoding["attention_mask"],
            "labels": torch.LongTensor(labels),
            "sents": list(texts),
            "sent_ids": list(ids),
        }


def sentiment_loader(records, tokenizer, batch_size=8, shuffle=True):
    """Records (sentence, label, id) -> batches; the tokenizer needs a padding token."""
    data = TextDataset(records, tokenizer)
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, collate_fn=data.collate_fn)


def cloze_prompt(sentence1, sentence2):
    return f'Is "{sentence1}" a paraphrase of "{sentence2}"? Answer "yes" or "no": '


def paraphrase_loader(
    records, tokenizer, batch_size=8, shuffle=True, prompt=cloze_prompt, label_ids=(NO, YES)
):
    """Records (sentence1, sentence2, 0 or 1, id) -> batches whose labels are token ids."""
    cloze = [(prompt(s1, s2), label_ids[label], id_) for s1, s2, label, id_ in records]
    return sentiment_loader(cloze, tokenizer, batch_size=batch_size, shuffle=shuffle)


def sonnet_loader(sonnets, tokenizer, batch_size=8, shuffle=True):
    """Sonnets as strings -> batches; their labels are the tokens themselves."""
    records = [(sonnet, 0, i) for i, sonnet in enumerate(sonnets)]
    return sentiment_loader(records, tokenizer, batch_size=batch_size, shuffle=shuffle)
