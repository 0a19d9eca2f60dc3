"""A run of `fit` small enough to be checked by hand: a linear layer on mean embeddings."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from course_files import WORKER
from torch import nn
from torch.nn import functional as F

import classifier
from config import GPT2Config
from engine.batches import TokenDataset, forward_tokens, make_loader
from engine.checkpoint import RunFolder, load_tree
from engine.options import FitOptions
from engine.settings import Settings
from engine.trainer import Trainer
from engine.training import fit

TOKENS, LABELS = 20, 3
TINY = GPT2Config(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)


class Averager(nn.Module):
    """Logits (b, 3) of the mean embedding of the real tokens; `gpt` is its backbone."""

    def __init__(self, dropout: float = 0.0, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.gpt = nn.Embedding(TOKENS, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, LABELS)

    def forward(self, token_ids, attention_mask):
        real = attention_mask[:, :, None]
        mean = (self.gpt(token_ids) * real).sum(dim=1) / real.sum(dim=1)
        return self.head(self.dropout(mean))


def summed_loss(logits, batch):
    return F.cross_entropy(logits, batch["labels"], reduction="sum")


def examples(rows: int, seed: int = 0) -> TokenDataset:
    """Texts of 1 to 6 tokens; the first one tells the label."""
    random = torch.Generator().manual_seed(seed)
    texts = [torch.randint(TOKENS, (1 + i % 6,), generator=random).tolist() for i in range(rows)]
    return TokenDataset(texts, [f"row{i}" for i in range(rows)], [ids[0] % LABELS for ids in texts])


def run(
    model,
    root,
    *,
    rows=12,
    batch_size=4,
    loss_fn=summed_loss,
    evaluate=None,
    extensions=(),
    log=lambda message: None,
    recorders=None,
    **options,
):
    """`fit` with these options on CPU; by default every epoch is better than the one before."""
    options = FitOptions(**{"epochs": 1, "lr": 0.1, "metric": "dev"} | options)
    count = iter(range(1000))
    settings = {"epochs": options.epochs, "seed": 0}
    return fit(
        model,
        make_loader(examples(rows), batch_size, shuffle=True),
        loss_fn=loss_fn,
        evaluate=evaluate or (lambda model: {"dev": float(next(count))}),
        options=options,
        folder=folder(root, settings),
        worker=WORKER,
        extensions=extensions,
        log=log,
        recorders=recorders or {},
    )


def stopped_run(root) -> Path:
    """The last file of a run of two epochs that was interrupted before the second one's end."""

    def stop(message):
        if message.startswith("Epoch 1"):
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run(Averager(), root, epochs=2, save_minutes=0, log=stop)
    return run_path(root, "*/last.safetensors")


def interrupt_after_save(patch, *, epoch: int, step: int) -> None:
    """A Ctrl-C right after the save of this moment of a run."""

    def stop(folder, tree, save=RunFolder.save_last):
        save(folder, tree)
        if (tree["progress"]["epoch"], tree["progress"]["step"]) == (epoch, step):
            raise KeyboardInterrupt

    patch.setattr(RunFolder, "save_last", stop)


def no_picture(history, path, *rest) -> None:
    """In the place of `plot_curves`, which takes nine tenths of such a run's time."""
    Path(path).write_bytes(b"a picture")


def trainer(
    model,
    loader,
    loss_fn,
    root,
    worker=WORKER,
    *,
    forward=forward_tokens,
    extensions=(),
    recorders=None,
    **options,
) -> Trainer:
    """What `fit` begins with, for a look at single epochs."""
    return Trainer(
        model,
        loader,
        loss_fn,
        FitOptions(**{"epochs": 1, "lr": 0.1, "metric": "none"} | options),
        folder(root),
        worker,
        extensions=list(extensions),
        forward=forward,
        log=print,
        recorders=recorders or {},
    )


def tiny_classifier(dropout: float = 0.0) -> classifier.GPT2SentimentClassifier:
    """Of five classes, on a GPT-2 of random weights."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    settings = SimpleNamespace(pretrained=False, gpt_config=vars(TINY) | rates)
    settings.num_labels, settings.hidden_dropout_prob = 5, dropout
    settings.fine_tune_mode = "full-model"
    return classifier.GPT2SentimentClassifier(settings)


def folder(root, settings=None) -> RunFolder:
    return RunFolder(root, "tiny", "run", Settings(settings or {}))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def run_path(root, pattern: str = "*") -> Path:
    """The one run in a folder of runs."""
    [path] = Path(root).glob(pattern)
    return path


def assert_same_results(one, other) -> None:
    """Two folders of one run each have the same best weights, bit for bit, and the same figures."""
    best = [load_tree(run_path(root, "*/best.safetensors"))["model"] for root in (one, other)]
    assert same_bits(*best)
    lines = [run_path(root, "*/metrics.jsonl").read_text("utf-8") for root in (one, other)]
    figures = [[{**json.loads(x), "seconds": 0} for x in text.splitlines()] for text in lines]
    assert figures[0] == figures[1]
