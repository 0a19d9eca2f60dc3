"""A classifier over a frozen GPT-2: the features are computed once, then only the head is trained.

Without extensions a frozen GPT-2 gives the same last-token features in every epoch.
"""

from functools import partial

import torch
from torch import nn
from torch.utils.data import Dataset

from engine.batches import BatchLoader, make_loader
from engine.predicting import outputs, rows_at_once

ROWS = 32  # that a CPU reads at once


class FrozenFeatures(Dataset):
    """The last-token features of a loader's data set under a frozen GPT-2, dropout off."""

    def __init__(self, model, loader, device):
        tokens = loader.dataset
        self.sent_ids, self.labels = tokens.sent_ids, tokens.labels
        self.fingerprint = tokens.fingerprint
        self.lengths = [1] * len(tokens)
        features, rows = [], []
        for batch, last_token in outputs(model, loader, device, partial(last_tokens, model)):
            features.append(last_token)
            rows += batch["indices"]
        self.features = torch.empty(len(tokens), model.gpt.config.hidden_size)
        self.features[rows] = torch.cat(features).cpu()

    def __len__(self):
        return len(self.sent_ids)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict:
        return {
            "features": self.features[indices],
            "labels": torch.tensor([self.labels[i] for i in indices], dtype=torch.long),
            "sent_ids": [self.sent_ids[i] for i in indices],
            "indices": indices,
        }


def last_tokens(model, batch: dict) -> torch.Tensor:
    """The last token's hidden states (b, d), in float32."""
    return model.gpt(batch["token_ids"], batch["attention_mask"])["last_token"].float()


class Head(nn.Module):
    """What is left of a classifier once its features are known: the trained part, same names."""

    def __init__(self, classifier):
        super().__init__()
        for name, module in classifier.named_children():
            if name != "gpt":
                self.add_module(name, module)
        self.classify = type(classifier).classify

    def forward(self, features):
        return self.classify(self, features)


def forward_features(model, batch: dict):
    return model(batch["features"])


def feature_loader(model, loader, device):
    """The same batches as the loader's, of features in place of tokens."""
    rows = make_loader(loader.dataset, rows_at_once(device, ROWS))
    features = FrozenFeatures(model, rows, device)
    return BatchLoader(features, loader.batch_sampler, collate=features.collate)
