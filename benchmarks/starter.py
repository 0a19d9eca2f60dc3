"""The plain completion of the course's starter code: the peer that benchmarks measure against.

It is what a diligent student has after filling in the starter the straightforward way of the
handout: correct (the same numbers as HuggingFace's GPT-2, the handout's AdamW), fp32, and plain.
Explicit attention scores, an optimizer that goes parameter by parameter and out of place, text
tokenized in every collate, shuffled batches padded to their longest row, the training set
evaluated again after each epoch, the whole prefix computed again for every generated token.

It is a yardstick, not a part of the project, and is not to be made faster. Only benchmarks import
it; with starter_model.py and starter_data.py it imports nothing of ours. Shape letters as in
`modules/attention.py`.

Differs from the starter in three places where that one is wrong or cannot run with our models:
the feed-forward width is `intermediate_size`, no embedding row is frozen by `padding_idx`, and
a checkpoint is a dict of tensors and numbers.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from benchmarks.starter_model import StarterGPT2

# The three tasks: forward(input_ids, attention_mask) -> logits, loss(batch) -> scalar


class StarterSentimentClassifier(nn.Module):
    """Dropout and one linear on the last token.

    In last-linear-layer mode the backbone is frozen, yet runs forward in every step.
    """

    def __init__(self, config, num_labels, dropout=0.3, fine_tune_mode="full-model"):
        super().__init__()
        self.gpt = StarterGPT2(config)
        for parameter in self.gpt.parameters():
            parameter.requires_grad = fine_tune_mode == "full-model"
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, input_ids, attention_mask):
        last_token = self.gpt(input_ids, attention_mask)["last_token"]
        return self.classifier(self.dropout(last_token))  # (b, labels)

    def loss(self, batch):
        logits = self(batch["token_ids"], batch["attention_mask"])
        labels = batch["labels"].view(-1)
        return F.cross_entropy(logits, labels, reduction="sum") / len(labels)


class StarterParaphraseGPT(nn.Module):
    """The next token after the cloze prompt, out of the whole vocabulary; labels are token ids."""

    def __init__(self, config):
        super().__init__()
        self.gpt = StarterGPT2(config)

    def forward(self, input_ids, attention_mask):
        last_token = self.gpt(input_ids, attention_mask)["last_token"]
        return self.gpt.hidden_state_to_token(last_token)  # (b, v)

    def loss(self, batch):
        logits = self(batch["token_ids"], batch["attention_mask"])
        return F.cross_entropy(logits, batch["labels"])


class StarterSonnetGPT(nn.Module):
    """A language model: logits of the next token at every position."""

    def __init__(self, config):
        super().__init__()
        self.gpt = StarterGPT2(config)

    def forward(self, input_ids, attention_mask):
        hidden = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        return self.gpt.hidden_state_to_token(hidden)  # (b, t, v)

    def loss(self, batch):
        logits = self(batch["token_ids"], batch["attention_mask"])
        logits = rearrange(logits[:, :-1], "b t v -> (b t) v")
        return F.cross_entropy(logits, batch["token_ids"][:, 1:].flatten())


# The optimizer


class StarterAdamW(torch.optim.Optimizer):
    """The handout's efficient Adam, then decay by lr * weight_decay; each line a new tensor."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad, state = p.grad.data, self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p.data)
                    state["exp_avg_sq"] = torch.zeros_like(p.data)
                state["step"] += 1
                exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
                exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2
                state["exp_avg"], state["exp_avg_sq"] = exp_avg, exp_avg_sq
                correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                p.data = p.data - lr * correction * exp_avg / (exp_avg_sq.sqrt() + eps)
                if group["weight_decay"] > 0:
                    p.data = p.data - lr * group["weight_decay"] * p.data
        return loss


# Training and evaluation


def to_device(batch, model):
    device = next(model.parameters()).device
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


def train_step(model, batch, optimizer):
    """One step of any of the three tasks; returns the loss as a float."""
    batch = to_device(batch, model)
    optimizer.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def train_epoch(model, loader, optimizer):
    """One pass in train mode; returns the mean loss of its batches."""
    model.train()
    train_loss = 0.0
    for batch in loader:
        train_loss += train_step(model, batch, optimizer)
    return train_loss / len(loader)


@torch.no_grad()
def evaluate(model, loader):
    """Accuracy and macro-F1 of a classifier (sentiment or paraphrase) on a loader."""
    model.eval()
    labels, predictions = [], []
    for batch in loader:
        batch = to_device(batch, model)
        logits = model(batch["token_ids"], batch["attention_mask"]).cpu().numpy()
        predictions.extend(logits.argmax(axis=-1).flatten())
        labels.extend(batch["labels"].cpu().numpy().flatten())
    return {
        "accuracy": accuracy_score(labels, predictions),
        "f1": f1_score(labels, predictions, average="macro"),
    }


def save_model(model, optimizer, path):
    if path is not None:
        torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, path)


def fit_sentiment(model, train_loader, dev_loader, optimizer, epochs=10, path=None):
    """Train; after each epoch evaluate on all of train and on dev; save the best on dev."""
    history = []
    for _ in range(epochs):
        loss = train_epoch(model, train_loader, optimizer)
        train, dev = evaluate(model, train_loader), evaluate(model, dev_loader)
        if all(dev["accuracy"] > epoch["dev"]["accuracy"] for epoch in history):
            save_model(model, optimizer, path)
        history.append({"loss": loss, "train": train, "dev": dev})
    return history


def fit_paraphrase(model, train_loader, dev_loader, optimizer, epochs=10, path=None):
    """Train; after each epoch evaluate on dev; save the best."""
    history = []
    for _ in range(epochs):
        loss, dev = train_epoch(model, train_loader, optimizer), evaluate(model, dev_loader)
        if all(dev["accuracy"] > epoch["dev"]["accuracy"] for epoch in history):
            save_model(model, optimizer, path)
        history.append({"loss": loss, "dev": dev})
    return history


def fit_sonnets(model, train_loader, prompts, optimizer, epochs=10, path=None, **decoding):
    """Train; after each epoch continue every held-out prompt, and save."""
    tokenizer, history = train_loader.dataset.tokenizer, []
    for _ in range(epochs):
        loss = train_epoch(model, train_loader, optimizer)
        texts = [generate(model, tokenizer, prompt, **decoding)[1] for prompt in prompts]
        history.append({"loss": loss, "texts": texts})
        save_model(model, optimizer, path)
    return history


# Decoding


@torch.no_grad()
def generate(model, tokenizer, prompt, max_length=128, temperature=0.7, top_p=0.9):
    """Continue one prompt by at most `max_length` sampled tokens: (token_ids (1, t), text)."""
    model.eval()
    device = next(model.parameters()).device
    token_ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(device)
    attention_mask = torch.ones_like(token_ids)
    for _ in range(max_length):
        logits = model(token_ids, attention_mask)  # (1, t, v), the whole prefix again
        probs = torch.softmax(logits[:, -1, :] / temperature, dim=-1)
        sorted_probs, sorted_ids = torch.sort(probs, descending=True)
        kept = torch.cumsum(sorted_probs, dim=-1) <= top_p
        kept[:, 1:] = kept[:, :-1].clone()  # the token that crosses top_p stays in
        kept[:, 0] = True
        filtered = sorted_probs * kept
        filtered = filtered / filtered.sum(dim=-1, keepdim=True)
        sampled = sorted_ids.gather(dim=-1, index=torch.multinomial(filtered, 1))
        if sampled.item() == tokenizer.eos_token_id:
            break
        token_ids = torch.cat([token_ids, sampled], dim=1)
        attention_mask = torch.ones_like(token_ids)
    return token_ids, tokenizer.decode(token_ids[0].tolist())
