"""The one flow of the tasks: a task of a few lines is trained, saved, loaded and predicts."""

from pathlib import Path

import pytest
import torch
from course_files import no_training, predicted, work_in, write
from tiny_run import run_path
from torch import nn

from engine.batches import tokenize
from engine.checkpoint import load_tree
from engine.classification import ClassificationTask
from engine.flags import add_task_arguments
from engine.hub import backbone
from engine.records import read_sentiment
from engine.task import run_tasks


class Classifier(nn.Module):
    """Two classes, from the last token."""

    reads_last_token_only = True

    def __init__(self, settings):
        super().__init__()
        self.gpt = backbone(settings)
        self.head = nn.Linear(self.gpt.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        return self.head(self.gpt(input_ids, attention_mask)["last_token"])


class Praise(ClassificationTask):
    """A fourth task: whether a text says "good"."""

    name, command = "praise", ("praise.py",)
    model = Classifier
    columns, column, classes = ("sentence", "sentiment"), "Praise", {0: "no", 1: "yes"}
    output_flags = ("dev_out", "test_out")

    def add_arguments(self, parser):
        parser.add_argument("--dev_out", default="dev_out.csv")
        parser.add_argument("--test_out", default="test_out.csv")
        add_task_arguments(parser, lr=3e-3)

    def paths(self, settings):
        return {split: f"{split}.csv" for split in self.splits}

    def read(self, path, *, labelled, say):
        return read_sentiment(path, 2 if labelled else None)

    def tokens(self, tokenizer, rows, limit, *, where, say):
        texts, sent_ids = [row.text for row in rows], [row.sent_id for row in rows]
        return tokenize(tokenizer, texts, sent_ids, limit, where=where, say=say)


@pytest.fixture
def flags(tmp_path, monkeypatch, model_folder):
    """Three files to work on, in the working directory."""
    work_in(monkeypatch, tmp_path)
    texts = ["good film", "awful plot", "good joke", "poor scene"] * 5
    for split in ("train", "dev"):
        rows = [f"{i}\tx{i}\t{text}\t{int('good' in text)}\n" for i, text in enumerate(texts)]
        write(f"{split}.csv", "\tid\tsentence\tsentiment\n" + "".join(rows))
    rows = [f"{i}\tx{i}\t{text}\n" for i, text in enumerate(texts)]
    write("test.csv", "\tid\tsentence\n" + "".join(rows))
    return ["--model_size", str(model_folder), "--epochs", "4"]


def test_a_task_of_a_few_lines_learns_and_writes_its_predictions(flags, capsys):
    task = Praise()
    run_tasks([task], task.get_args(flags))
    assert list(predicted("test_out.csv").values()) == ["yes", "no"] * 10
    assert "praise: dev acc :: 1.000, dev f1 :: 1.000\n" in capsys.readouterr().out


def test_its_checkpoint_predicts_the_same_and_reads_no_training_file(flags, monkeypatch):
    task = Praise()
    run_tasks([task], task.get_args(flags))
    first = Path("test_out.csv").read_bytes()
    best = run_path("runs", "*/best.safetensors")
    Path("train.csv").unlink()
    monkeypatch.setattr("engine.task.fit", no_training)
    run_tasks([task], task.get_args(["--checkpoint", str(best), "--test_out", "again.csv"]))
    assert Path("again.csv").read_bytes() == first


def test_a_checkpoint_has_all_that_builds_its_model_again(flags):
    task = Praise()
    run_tasks([task], task.get_args(flags))
    best = run_path("runs", "*/best.safetensors")
    model, settings = task.load(best)
    assert settings.gpt_config["hidden_size"] == model.gpt.config.hidden_size == 32
    for name, tensor in load_tree(best)["model"].items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_limited_run_leaves_the_outputs_of_a_whole_one(flags):
    task = Praise()
    outputs = task.outputs(task.get_args([*flags, "--limit", "3", "--dev_out", "given.csv"]))
    assert outputs == {"dev": "given.csv", "test": "test_out.limit-3.csv"}
