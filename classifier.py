"""Sentiment classification with GPT-2: SST (five classes), then CFIMDB (two).

logits = W · dropout(h_last) + b         h_last: the last token's hidden state

python classifier.py --fine-tune-mode full-model --use_gpu
"""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from engine.errors import InputError, Parser, command
from engine.files import check_writable
from engine.hub import load_tokenizer
from engine.parallel import seed_everything

# isort: split

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import TokenDataset, batch_loader, make_loader, tokenise
from engine.checkpoint import RunFolder, load_model
from engine.extension import equip, load_extensions
from engine.flags import (
    add_fit_arguments,
    add_max_length,
    check_fit_flags,
    check_range,
    fit_options,
    length_limit,
    limited_path,
    split_loader,
    take_over,
)
from engine.hub import backbone
from engine.parallel import Worker, joined_worker
from engine.prediction_files import write_predictions, write_record
from engine.records import NUM_LABELS, data_file, read_sentiment, warn_of_rows_in_both
from engine.training import fit
from evaluation import accuracy_and_f1, predict

LEARNING_RATES = {"last-linear-layer": 1e-3, "full-model": 1e-5}
OUTPUT_NAMES = {"last-linear-layer": "pretrain", "full-model": "finetune"}
CFIMDB_BATCH_SIZE = 8


class GPT2SentimentClassifier(nn.Module):
    """A linear layer on GPT-2's last token.

    config: num_labels, hidden_dropout_prob, what `backbone` reads, and fine_tune_mode:
    "last-linear-layer" trains that layer alone, "full-model" everything.
    """

    reads_last_token_only = True

    def __init__(self, config):
        super().__init__()
        self.num_labels = config.num_labels
        self.gpt = backbone(config)
        if config.fine_tune_mode == "last-linear-layer":
            self.gpt.requires_grad_(False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.sentiment_head = nn.Linear(self.gpt.config.hidden_size, config.num_labels)

    def forward(self, input_ids, attention_mask):
        """(b, t) -> logits (b, num_labels)."""
        return self.classify(self.gpt(input_ids, attention_mask)["last_token"])

    def classify(self, features):
        """Last-token features (b, d) -> logits (b, num_labels)."""
        return self.sentiment_head(self.dropout(features))


class FrozenFeatures(torch.utils.data.Dataset):
    """The last-token features of a data set under a frozen GPT-2, computed once, dropout off."""

    def __init__(self, model, loader, device):
        tokens = loader.dataset
        self.sent_ids, self.labels, self.fingerprint = (
            tokens.sent_ids,
            tokens.labels,
            tokens.fingerprint,
        )
        self.features = torch.empty(len(tokens), model.gpt.config.hidden_size)
        model.eval()
        with torch.no_grad():
            for batch in loader:
                token_ids, mask = batch["token_ids"].to(device), batch["attention_mask"].to(device)
                last_token = model.gpt(token_ids, mask)["last_token"]
                self.features[batch["indices"]] = last_token.float().cpu()
        self.lengths = [1] * len(tokens)

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


class HeadOnly(nn.Module):
    """What is left of a classifier once its features are known: the trained part, same names."""

    def __init__(self, classifier: GPT2SentimentClassifier):
        super().__init__()
        self.dropout, self.sentiment_head = classifier.dropout, classifier.sentiment_head

    def forward(self, features):
        return self.sentiment_head(self.dropout(features))


def forward_features(model, batch: dict):
    return model(batch["features"])


def build_model(config, pretrained: bool = True) -> GPT2SentimentClassifier:
    """The one constructor, for training and for loading; config as in the checkpoint's settings."""
    model = GPT2SentimentClassifier(SimpleNamespace(**vars(config), pretrained=pretrained))
    equip(model, load_extensions(config.extension))
    return model


def build_loaders(args, name: str, tokenizer, limit: int, worker: Worker) -> dict:
    """The loaders train, dev and test of a data set; only train is shuffled."""
    loaders = {}
    batch_size = args.batch_size
    if name == "cfimdb":
        batch_size = -(-CFIMDB_BATCH_SIZE // worker.count)
    splits = ("train", "dev", "test")
    paths = {split: Path(args.data_dir) / data_file(name, split) for split in splits}
    rows = {}
    for split, path in paths.items():
        rows[split] = read_sentiment(path, None if split == "test" else NUM_LABELS[name])
    warn_of_rows_in_both(rows["train"], rows["dev"], paths, worker.say)
    for split, path in paths.items():
        records = rows[split][: args.limit]
        sent_ids = [record.sent_id for record in records]
        texts = [record.text for record in records]
        token_ids = tokenise(tokenizer, texts, sent_ids, limit, where=path, say=worker.say)
        labels = None if split == "test" else [record.label for record in records]
        dataset = TokenDataset(token_ids, sent_ids, labels)
        loaders[split] = split_loader(args, dataset, split, worker, batch_size)
    return loaders


def loss_fn(logits, batch: dict):
    """Cross-entropy summed over the batch, in nats."""
    return F.cross_entropy(logits, batch["labels"], reduction="sum")


def evaluate(model, loader, device, **how) -> dict:
    """Accuracy and macro-F1 on the dev set."""
    scores = accuracy_and_f1(predict(model, loader, device, **how))
    return {"dev_acc": scores["acc"], "dev_f1": scores["f1"]}


def train(args, model, loaders: dict, folder: RunFolder, worker: Worker) -> None:
    """Fine-tune; afterwards the model holds its best epoch.

    A backbone that is frozen and that no extension touches gives the same features in every epoch:
    they are computed once, and only the linear layer is run after that.
    """
    options = fit_options(args, metric="dev_acc")
    trained, how, batches = model, {}, loaders
    if args.fine_tune_mode == "last-linear-layer" and not model.extensions:
        trained, how = HeadOnly(model), {"forward": forward_features}
        batches = {split: _on_features(model, loaders[split], worker) for split in ("train", "dev")}
    fit(
        trained,
        batches["train"],
        loss_fn=loss_fn,
        evaluate=lambda m: evaluate(m, batches["dev"], worker.device, **how),
        options=options,
        folder=folder,
        worker=worker,
        extensions=model.extensions,
        **how,
    )


def _on_features(model, loader, worker: Worker):
    """The same batches as the loader's, of features in place of tokens."""
    features = FrozenFeatures(model, make_loader(loader.dataset, 32), worker.device)
    return batch_loader(features, loader.batch_sampler, collate=features.collate)


def test(args, model, name: str, loaders: dict, worker: Worker, made_by) -> None:
    """Write the predictions for dev and test; made_by: the run's folder or checkpoint."""
    figures = {}
    for split, path in output_paths(args, name).items():
        predictions = predict(model, loaders[split], worker.device)
        if split == "dev":
            figures = {"acc": accuracy_and_f1(predictions)["acc"]}
            worker.say(f"{name}: dev acc :: {figures['acc']:.3f}")
        if worker.is_main:
            column = "Predicted_Sentiment"
            write_predictions(path, column, predictions.sent_ids, predictions.predicted)
            write_record(made_by, path, args, figures)
        worker.say(f"{name}: {split} predictions are in {path}")


def output_paths(args, name: str) -> dict[str, Path]:
    prefix = OUTPUT_NAMES[args.fine_tune_mode]
    given = {"dev": args.dev_out, "test": args.test_out}
    default = {s: f"predictions/{prefix}-{name}-{s}-out.csv" for s in given}
    return {s: Path(given[s] or limited_path(default[s], args.limit)) for s in given}


def run(args, name: str, worker: Worker) -> None:
    """Train on one data set and predict, or only predict with `--checkpoint`."""
    for path in output_paths(args, name).values():
        check_writable(path)
    seed_everything(args.seed)
    if args.checkpoint:
        made_by = args.checkpoint
        model, trained_with = load_model(made_by, name, build_model)
        take_over(args, trained_with)
    else:
        args.num_labels = NUM_LABELS[name]
        model = build_model(args)
        args.gpt_config = asdict(model.gpt.config)
    model.to(worker.device)
    tokenizer = load_tokenizer(args.model_size)
    loaders = build_loaders(args, name, tokenizer, length_limit(args, model), worker)
    if not args.checkpoint:
        torch.manual_seed(args.seed + worker.rank)  # dropout differs from worker to worker
        settings = vars(args) | {"dataset": name}
        run_name = f"{args.fine_tune_mode}-{Path(args.model_size).name}"
        folder = RunFolder(args.runs_dir, name, run_name, settings, writes=worker.is_main)
        worker.say(f"{name}: {args.fine_tune_mode}, lr {args.lr:g}, checkpoints in {folder.path}")
        train(args, model, loaders, folder, worker)
        made_by = folder.path
    test(args, model, name, loaders, worker, made_by)


def get_args(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--fine-tune-mode",
        choices=("last-linear-layer", "full-model"),
        default="last-linear-layer",
        help="last-linear-layer: the GPT-2 is frozen; full-model: it is trained too",
    )
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="sst: 64 fits a 12 GB GPU; cfimdb always uses 8"
    )
    parser.add_argument("--hidden_dropout_prob", type=float, default=0.3)
    parser.add_argument(
        "--lr", type=float, help="default: 1e-3 for last-linear-layer, 1e-5 for full-model"
    )
    parser.add_argument("--model_size", default="gpt2", help="a size, a hub name or a folder")
    parser.add_argument("--dataset", choices=("all", *NUM_LABELS), default="all")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dev_out", help="with --dataset: where the dev predictions go")
    parser.add_argument("--test_out", help="with --dataset: where the test predictions go")
    add_max_length(parser)
    add_fit_arguments(parser)
    args = parser.parse_args(argv)
    if args.lr is None:
        args.lr = LEARNING_RATES[args.fine_tune_mode]
    check_fit_flags(args)
    check_range(args, "hidden_dropout_prob", 0, 1)
    return args


@command
def main():
    args = get_args()
    names = list(NUM_LABELS) if args.dataset == "all" else [args.dataset]
    if len(names) > 1 and (args.dev_out or args.test_out or args.checkpoint):
        raise InputError("--dev_out, --test_out, --checkpoint: name one data set too, by --dataset")
    with joined_worker(args.use_gpu) as worker:
        for name in names:
            run(args, name, worker)


if __name__ == "__main__":
    main()
