"""Tasks that give each row of a table a class: their loaders, figures and prediction files."""

from collections.abc import Iterator
from pathlib import Path

from torch.nn import functional as F

from engine.batches import TokenDataset, forward_tokens
from engine.errors import notice
from engine.flags import split_loader
from engine.parallel import Worker
from engine.predicting import accuracy_and_f1, predict
from engine.prediction_files import write_predictions, write_record
from engine.records import warn_of_rows_in_both
from engine.run_facts import majority_figures, wilson_interval
from engine.settings import Settings
from engine.task import Task
from engine.trying import class_probabilities, classified, say_answer


class ClassificationTask(Task):
    """columns: of its data files, id left out, the label last.

    column: of its prediction files; classes: what they have for each class; class_names: what a
    reader calls them.
    """

    columns: tuple[str, ...]
    column: str
    classes: dict[int, int]
    class_names: tuple[str, ...]

    def tokens(self, tokenizer, rows: list, limit: int, *, where, say) -> list[list[int]]:
        """The token ids that the model reads of each row; where: the rows' file, for errors."""
        raise NotImplementedError

    def batch_size(self, settings: Settings, worker: Worker) -> int:
        """Rows of a batch, for each worker."""
        return settings.batch_size

    def own_rows(self, settings: Settings) -> Iterator[tuple[str, object]]:
        """The rows of the flag `trial`, each with the text that stands above its answer."""
        raise NotImplementedError

    def try_out(self, settings, model, tokenizer, limit, device):
        where = f"--{self.trial}"
        for text, row in self.own_rows(settings):
            [token_ids] = self.tokens(tokenizer, [row], limit, where=where, say=notice)
            probabilities = class_probabilities(model, token_ids, device)
            tokens = [tokenizer.decode([token]) for token in token_ids]
            answer = classified(text, self.class_names, probabilities, tokens)
            say_answer(answer, as_json=settings.json)

    def build_loaders(self, settings, tokenizer, limit, worker, splits=None):
        paths = {split: Path(self.paths(settings)[split]) for split in splits or self.splits}
        rows = {
            split: self.read(path, labelled=split != "test", say=worker.say)
            for split, path in paths.items()
        }
        if {"train", "dev"} <= rows.keys():
            warn_of_rows_in_both(rows["train"], rows["dev"], paths, worker.say)
        loaders = {}
        for split, path in paths.items():
            kept = rows[split][: settings.limit]
            token_ids = self.tokens(tokenizer, kept, limit, where=path, say=worker.say)
            labels = None if split == "test" else [row.label for row in kept]
            dataset = TokenDataset(token_ids, [row.sent_id for row in kept], labels)
            batch_size = self.batch_size(settings, worker)
            loaders[split] = split_loader(settings, dataset, split, worker, batch_size)
        return loaders

    def loss_fn(self, logits, batch):
        """Cross-entropy summed over the batch, in nats."""
        return F.cross_entropy(logits, batch["labels"], reduction="sum")

    def evaluate(self, model, loader, device, forward=forward_tokens):
        """Loss, accuracy and macro-F1 on the dev set."""
        predictions = predict(model, loader, device, forward, self.loss_fn)
        scores = accuracy_and_f1(predictions)
        return {"dev_loss": predictions.loss, "dev_acc": scores["acc"], "dev_f1": scores["f1"]}

    def references(self, figures, loaders):
        """The majority class's figures, and the interval of the accuracy."""
        training, dev = (loaders[split].dataset.labels for split in ("train", "dev"))
        majority = majority_figures(training, dev)
        found = {name: {"majority": majority[name]} for name in majority}
        interval = wilson_interval(figures["dev_acc"], len(dev))
        return found | {"dev_acc": found["dev_acc"] | {"interval": interval, "rows": len(dev)}}

    def test(self, settings, model, loaders, worker, made_by):
        """Write the predictions for dev and test; the figures are those of dev."""
        figures = {}
        for split, path in self.outputs(settings).items():
            predictions = predict(model, loaders[split], worker.device)
            if split == "dev":
                scores = accuracy_and_f1(predictions)
                figures = {f"dev_{name}": score for name, score in scores.items()}
                listed = ", ".join(f"dev {name} :: {scores[name]:.3f}" for name in scores)
                worker.say(f"{self.name}: {listed}")
            if worker.is_main:
                values = [self.classes[label] for label in predictions.predicted]
                write_predictions(path, self.column, predictions.sent_ids, values)
                write_record(made_by, path, settings, {"acc": scores["acc"]})
            worker.say(f"{self.name}: {split} predictions are in {path}")
        return {"figures": figures}
