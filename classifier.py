"""Sentiment classification with GPT-2: SST (five classes), then CFIMDB (two).

logits = W · dropout(h_last) + b         h_last: the last token's hidden state

python classifier.py --fine-tune-mode full-model --use_gpu
"""

from pathlib import Path

from engine.errors import InputError, command

# isort: split

from torch import nn

from engine.batches import tokenize
from engine.classification import ClassificationTask
from engine.flags import add_task_arguments, check_range, limited_path
from engine.frozen_features import Head, feature_loader, forward_features
from engine.hub import backbone
from engine.own_texts import check_texts, given_texts
from engine.records import CLASS_NAMES, NUM_LABELS, Record, data_file, read_sentiment
from engine.task import run_tasks
from engine.trying import add_trial_arguments

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


class Sentiment(ClassificationTask):
    """SST or CFIMDB, by name."""

    model = GPT2SentimentClassifier
    columns, column = ("sentence", "sentiment"), "Predicted_Sentiment"
    output_flags = ("dev_out", "test_out")
    trial, trial_texts = "text", ("a warm and funny film",)

    def __init__(self, name: str):
        self.name, self.command = name, ("classifier.py", "--dataset", name)
        self.classes = {label: label for label in range(NUM_LABELS[name])}
        self.class_names = CLASS_NAMES[name]

    def add_arguments(self, parser):
        parser.add_argument(
            "--fine-tune-mode",
            choices=tuple(LEARNING_RATES),
            default="last-linear-layer",
            help="last-linear-layer: the GPT-2 is frozen; full-model: it is trained too",
        )
        parser.add_argument(
            "--dataset",
            choices=("all", *NUM_LABELS),
            default="all",
            help=f"cfimdb always has batches of {CFIMDB_BATCH_SIZE}",
        )
        parser.add_argument("--hidden_dropout_prob", type=float, default=0.3)
        parser.add_argument("--dev_out", help="with --dataset: where the dev predictions go")
        parser.add_argument("--test_out", help="with --dataset: where the test predictions go")
        rates = ", ".join(f"{rate:g} for {mode}" for mode, rate in LEARNING_RATES.items())
        add_task_arguments(parser, lr=None, lr_help=f"default: {rates}")
        add_trial_arguments(parser, "--text", help="a text to classify; -: the lines of stdin")

    def resolve(self, settings):
        outputs = settings.dev_out or settings.test_out
        if settings.dataset == "all" and (outputs or (settings.checkpoint and not settings.text)):
            raise InputError("--dev_out, --test_out, --checkpoint: name a data set by --dataset")
        check_range(settings, "hidden_dropout_prob", 0, 1)
        check_texts("--text", settings.text or [], stdin=True)
        default = LEARNING_RATES[settings.fine_tune_mode]
        return settings.replace(lr=default if settings.lr is None else settings.lr)

    def paths(self, settings):
        folder = Path(settings.data_dir)
        return {split: str(folder / data_file(self.name, split)) for split in self.splits}

    def outputs(self, settings):
        prefix = f"predictions/{OUTPUT_NAMES[settings.fine_tune_mode]}-{self.name}"
        return {
            split: path or limited_path(f"{prefix}-{split}-out.csv", settings.limit)
            for split, path in super().outputs(settings).items()
        }

    def run_name(self, settings):
        return f"{settings.fine_tune_mode}-{super().run_name(settings)}"

    def model_settings(self, settings):
        return {"num_labels": len(self.classes), "dataset": self.name}

    def batch_size(self, settings, worker):
        if self.name == "cfimdb":
            return -(-CFIMDB_BATCH_SIZE // worker.world_size)
        return settings.batch_size

    def read(self, path, *, labelled, say):
        return read_sentiment(path, len(self.classes) if labelled else None)

    def tokens(self, tokenizer, rows, limit, *, where, say):
        texts, sent_ids = [row.text for row in rows], [row.sent_id for row in rows]
        return tokenize(tokenizer, texts, sent_ids, limit, where=where, say=say)

    def own_rows(self, settings):
        for text in given_texts("--text", settings.text):
            yield text, Record("1", text)

    def trained_part(self, settings, model, loaders, worker):
        """Of a frozen GPT-2 that no extension touches, the features are computed once."""
        if settings.fine_tune_mode == "full-model" or model.extensions:
            return super().trained_part(settings, model, loaders, worker)
        model.to(worker.device)
        features = {s: feature_loader(model, loaders[s], worker.device) for s in ("train", "dev")}
        return Head(model), features, forward_features


TASKS = {name: Sentiment(name) for name in NUM_LABELS}


@command
def main():
    settings = TASKS["sst"].get_args()
    chosen = list(TASKS) if settings.dataset == "all" else [settings.dataset]
    run_tasks([TASKS[name] for name in chosen], settings)


if __name__ == "__main__":
    main()
