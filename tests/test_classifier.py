"""Sentiment: the course's contract, both modes end to end, cached features, checkpoints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from course_files import (
    WORKER,
    call_main,
    no_training,
    predicted,
    work_in,
    write,
    write_course,
    write_model,
)
from tiny_run import run_path
from torch import nn

from classifier import TASKS, GPT2SentimentClassifier
from engine.batches import collate
from engine.checkpoint import RunFolder, load_tree
from engine.files import ROOT
from engine.flags import fit_options
from engine.hub import load_tokenizer
from engine.parallel import seed_everything
from engine.predicting import predict
from engine.records import read_sentiment
from engine.task import train
from engine.training import fit
from models.gpt2 import GPT2Model

SST = TASKS["sst"]
MODES = ("last-linear-layer", "full-model")
PREFIX = {"last-linear-layer": "pretrain", "full-model": "finetune"}


@pytest.fixture(scope="module")
def restless_folder(tmp_path_factory):
    """A GPT-2 with dropout: features that were made in training mode are seen to differ."""
    return write_model(tmp_path_factory.mktemp("restless"), dropout=0.3)


@pytest.fixture
def words(tmp_path, monkeypatch, data, model_folder):
    """The flags that every run here shares; outputs go below tmp_path."""
    work_in(monkeypatch, tmp_path)
    return ["--data_dir", data, "--model_size", model_folder, "--epochs", "2"]


def config(folder, **changes) -> SimpleNamespace:
    """What a grader passes."""
    settings = {"num_labels": 5, "hidden_size": 32, "hidden_dropout_prob": 0.3}
    settings |= {"fine_tune_mode": "full-model", "model_size": str(folder)}
    return SimpleNamespace(**settings | changes)


def prepared(args):
    """The model and loaders of `run` for SST."""
    seed_everything(args.seed)
    model, args = SST.start(args)
    loaders = SST.build_loaders(args, load_tokenizer(args.model_size), 512, WORKER)
    return model, loaders


# -- data --------------------------------------------------------------------------------------


def test_a_long_review_is_cut_and_everything_goes_on(words, data, tmp_path, monkeypatch, capsys):
    copy = write_course(tmp_path / "copy")
    review = "good film " * 600
    for split, row in {
        "train": f"9\tlong\t{review}\t1",
        "test-student": f"9\t9\tlong\t{review}",
    }.items():
        path = copy / f"ids-sst-{split}.csv"
        write(path, f"{path.read_text(encoding='utf-8')}{row}\n")
    flags = ["--dataset", "sst", "--data_dir", copy]
    call_main(monkeypatch, "classifier", *words, *flags)
    said = capsys.readouterr().out
    for split in ("train", "test-student"):
        assert f"ids-sst-{split}.csv: 1 rows are cut to 512 tokens: long\n" in said
    assert "long" in predicted("predictions/pretrain-sst-test-out.csv")


def test_the_length_of_texts_is_a_flag_that_a_checkpoint_keeps(words, monkeypatch, capsys):
    flags = [*words, "--dataset", "sst", "--max_length", "3"]
    call_main(monkeypatch, "classifier", *flags)
    expected = Path("predictions/pretrain-sst-test-out.csv").read_bytes()
    assert "rows are cut to 3 tokens" in capsys.readouterr().out
    best = run_path("runs", "*/best.safetensors")
    call_main(monkeypatch, "classifier", *words, "--dataset", "sst", "--checkpoint", best)
    assert "rows are cut to 3 tokens" in capsys.readouterr().out
    assert Path("predictions/pretrain-sst-test-out.csv").read_bytes() == expected


def test_rows_that_stand_in_training_and_dev_are_said_before_training(
    words, tmp_path, monkeypatch, capsys
):
    copy = write_course(tmp_path / "copy")
    shutil.copy(copy / "ids-sst-train.csv", copy / "ids-sst-dev.csv")
    monkeypatch.setattr("engine.task.fit", no_training)
    with pytest.raises(AssertionError, match="training began"):
        call_main(monkeypatch, "classifier", *words, "--dataset", "sst", "--data_dir", copy)
    assert "ids-sst-dev.csv: 40 of 40 rows stand in " in capsys.readouterr().out


# -- the model ---------------------------------------------------------------------------------


def test_logits_are_a_linear_map_of_the_last_real_token(model_folder):
    model = GPT2SentimentClassifier(config(model_folder)).eval()
    token_ids = torch.randint(200, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    logits = model(token_ids, mask)
    assert logits.shape == (2, 5)
    [head] = [m for name, m in model.named_children() if isinstance(m, nn.Linear)]
    assert head.weight.shape == (5, 32) and head.bias.shape == (5,)
    hidden = GPT2Model.from_pretrained(str(model_folder)).eval()
    for row, length in enumerate((6, 4)):
        states = hidden(token_ids[row : row + 1, :length])["last_hidden_state"]
        torch.testing.assert_close(logits[row], head(states[0, -1]), rtol=1e-5, atol=1e-6)


def test_dropout_acts_on_the_last_token_in_training_only(model_folder):
    torch.manual_seed(0)
    model = GPT2SentimentClassifier(config(model_folder, hidden_dropout_prob=1.0))
    inputs = torch.randint(200, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    [bias] = [m.bias for m in model.children() if isinstance(m, nn.Linear)]
    torch.testing.assert_close(model.train()(*inputs), bias.expand(2, 5))
    assert not torch.allclose(model.eval()(*inputs), bias.expand(2, 5))


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_its_parameters(model_folder, mode):
    model = GPT2SentimentClassifier(config(model_folder, fine_tune_mode=mode))
    model(torch.randint(200, (2, 6)), torch.ones(2, 6, dtype=torch.long)).sum().backward()
    moved = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    head = {"sentiment_head.weight", "sentiment_head.bias"}
    if mode == "last-linear-layer":
        assert moved == head
    else:
        assert head < moved and any(name.startswith("gpt.gpt_layers.0.") for name in moved)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == dict(
            model.named_parameters()
        ).keys()


def test_without_a_model_size_the_published_gpt2_is_loaded(model_folder, monkeypatch):
    asked = []

    def checkpoint_folder(name):
        asked.append(name)
        return model_folder

    monkeypatch.setattr("engine.hub.checkpoint_folder", checkpoint_folder)
    settings = config(model_folder, num_labels=2, hidden_size=768)
    del settings.model_size
    assert GPT2SentimentClassifier(settings).num_labels == 2
    assert asked == ["gpt2"]


# -- flags -------------------------------------------------------------------------------------


def test_the_course_s_flags_have_the_course_s_defaults():
    args = vars(SST.get_args([]))
    course = {"seed": 11711, "epochs": 10, "fine_tune_mode": "last-linear-layer"}
    course |= {"use_gpu": False, "batch_size": 8, "hidden_dropout_prob": 0.3, "lr": 1e-3}
    assert {name: args[name] for name in course} == course


def test_the_learning_rate_follows_the_mode_unless_it_is_given():
    assert SST.get_args(["--fine-tune-mode", "last-linear-layer"]).lr == 1e-3
    assert SST.get_args(["--fine-tune-mode", "full-model"]).lr == 1e-5
    assert SST.get_args(["--fine-tune-mode", "full-model", "--lr", "1e-3"]).lr == 1e-3
    assert SST.get_args(["--lr", "0"]).lr == 0


def test_what_extras_do_is_nothing_by_default():
    args = vars(SST.get_args([]))
    neutral = {"warmup": 0, "schedule": "constant", "clip": 0, "accumulate": 1, "weight_decay": 0}
    neutral |= {"bf16": False, "extension": [], "limit": None, "checkpoint": None, "resume": False}
    assert {name: args[name] for name in neutral} == neutral


# -- end to end --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_sst_then_cfimdb_are_trained_and_the_four_files_written(
    words, mode, data, tmp_path, monkeypatch, capsys
):
    call_main(monkeypatch, "classifier", *words, "--fine-tune-mode", mode)
    names = [f"{PREFIX[mode]}-{n}-{s}-out.csv" for n in ("sst", "cfimdb") for s in ("dev", "test")]
    assert sorted(p.name for p in (tmp_path / "predictions").iterdir()) == sorted(names)
    said = capsys.readouterr().out
    rate = {"last-linear-layer": "0.001", "full-model": "1e-05"}[mode]
    assert said.index(f"sst: {mode}, lr {rate}") < said.index(f"cfimdb: {mode}, lr {rate}")
    for name, labels in {"sst": 5, "cfimdb": 2}.items():
        for split, file in {"dev": "dev", "test": "test-student"}.items():
            path = tmp_path / "predictions" / f"{PREFIX[mode]}-{name}-{split}-out.csv"
            records = read_sentiment(data / f"ids-{name}-{file}.csv", labels * (split == "dev"))
            found = predicted(path)
            assert list(found) == [record.sent_id for record in records]  # the file's order
            assert set(found.values()) <= set(map(str, range(labels)))
            assert path.read_text().startswith("id, Predicted_Sentiment \n")
            if split == "dev":
                right = sum(int(found[r.sent_id]) == r.label for r in records)
                assert f"{name}: dev acc :: {right / len(records):.3f}" in said


def test_modes_datasets_and_their_runs_do_not_share_files(words, tmp_path, monkeypatch):
    for mode in MODES:
        call_main(monkeypatch, "classifier", *words, "--epochs", 1, "--fine-tune-mode", mode)
    assert len(list((tmp_path / "predictions").iterdir())) == 8
    assert len(list((tmp_path / "runs").iterdir())) == 4


@pytest.mark.parametrize("asked", [2, 64])
def test_cfimdb_is_always_read_at_batch_size_8(words, asked):
    args = SST.get_args([str(word) for word in [*words, "--batch_size", asked]])
    tokenizer = load_tokenizer(args.model_size)
    for name, expected in {"sst": min(asked, 40), "cfimdb": 8}.items():
        loaders = TASKS[name].build_loaders(args, tokenizer, 512, WORKER)
        assert max(len(batch["sent_ids"]) for batch in loaders["train"]) == expected


def test_only_the_training_rows_are_shuffled_and_each_is_read_once_an_epoch(words):
    loaders = prepared(SST.get_args([str(word) for word in words]))[1]
    for split, rows in {"train": 40, "dev": 20, "test": 13}.items():
        orders = []
        for epoch in (0, 1):
            loaders[split].batch_sampler.set_epoch(epoch)
            orders.append([row for batch in loaders[split] for row in batch["indices"]])
            assert sorted(orders[-1]) == list(range(rows))
        assert (orders[0] != orders[1]) == (split == "train")


def test_limit_takes_the_first_rows_and_leaves_the_predictions_of_a_whole_run(
    words, data, tmp_path, monkeypatch, capsys
):
    for split in ("dev", "test"):
        write(f"predictions/pretrain-sst-{split}-out.csv", "whole")
    call_main(monkeypatch, "classifier", *words, "--dataset", "sst", "--limit", 3)
    for split in ("dev", "test"):
        assert Path(f"predictions/pretrain-sst-{split}-out.csv").read_text("utf-8") == "whole"
    said = capsys.readouterr().out
    assert "sst: dev predictions are in predictions/pretrain-sst-dev-out.limit-3.csv" in said
    metrics = (tmp_path / "runs").glob("*/metrics.jsonl")
    assert len(list(metrics)) == 1
    for split, count in {"dev": 5, "test": None}.items():
        path = data / f"ids-sst-{'dev' if count else 'test-student'}.csv"
        found = predicted(tmp_path / "predictions" / f"pretrain-sst-{split}-out.limit-3.csv")
        assert list(found) == [r.sent_id for r in read_sentiment(path, count)[:3]]


def test_outputs_go_where_dev_out_and_test_out_say(words, tmp_path, monkeypatch):
    outs = ["--dev_out", "here/d.csv", "--test_out", tmp_path / "t.csv"]
    call_main(monkeypatch, "classifier", *words, "--dataset", "cfimdb", *outs)
    assert predicted("here/d.csv") and predicted(tmp_path / "t.csv")
    assert list((tmp_path / "predictions").glob("*.csv")) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_predicts_what_the_run_predicted(words, mode, tmp_path, monkeypatch):
    """Whatever the flags that only training reads; `--model_size` is the checkpoint's own."""
    words = [*words, "--dataset", "sst", "--lr", "1e-3"]
    call_main(monkeypatch, "classifier", *words, "--fine-tune-mode", mode)
    outputs = sorted((tmp_path / "predictions").iterdir())
    first = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    [best] = (tmp_path / "runs").glob("*/best.safetensors")
    frozen = any(n.startswith("gpt.") for n in load_tree(best)["model"])
    assert frozen == (mode == "full-model")  # a frozen backbone is not stored again
    monkeypatch.setattr("engine.task.fit", no_training)
    words = [word if word != words[3] else "no-such-model" for word in words]
    call_main(monkeypatch, "classifier", *words, "--checkpoint", best)
    assert sorted((tmp_path / "predictions").iterdir()) == outputs
    assert [path.read_bytes() for path in outputs] == first


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run_and_another_one_another(
    words, mode, tmp_path, monkeypatch
):
    losses = []
    for i, seed in enumerate((1, 1, 2)):
        flags = ["--dataset", "sst", "--seed", seed, "--runs_dir", f"runs{i}"]
        call_main(monkeypatch, "classifier", *words, *flags, "--fine-tune-mode", mode)
        [metrics] = (tmp_path / f"runs{i}").glob("*/metrics.jsonl")
        losses.append(
            [json.loads(line)["train_loss"] for line in metrics.read_text().split("\n")[:2]]
        )
    assert losses[0] == losses[1] != losses[2]


def test_the_real_program_runs_from_any_folder(data, model_folder, tmp_path):
    command = [sys.executable, str(ROOT / "classifier.py"), "--data_dir", str(data)]
    command += ["--model_size", str(model_folder), "--epochs", "1", "--dataset", "cfimdb"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "cfimdb: last-linear-layer, lr 0.001" in run.stdout
    assert len(predicted(tmp_path / "predictions" / "pretrain-cfimdb-dev-out.csv")) == 20


# -- training ----------------------------------------------------------------------------------


def test_cached_features_train_the_head_that_the_whole_frozen_model_would(
    words, restless_folder, tmp_path
):
    """Same batches, same order; GPT-2's own dropout is off in both."""
    flags = [*words, "--model_size", restless_folder, "--hidden_dropout_prob", "0", "--epochs", "4"]
    args = SST.get_args([str(word) for word in flags])
    cached, loaders = prepared(args)
    start = cached.sentiment_head.weight.detach().clone()
    cached_folder = RunFolder(tmp_path / "a", "sst", "x", args)
    train(SST, args, cached, loaders, cached_folder, WORKER)

    whole, loaders = prepared(args)
    assert torch.equal(whole.sentiment_head.weight, start)
    whole.gpt.eval()
    whole.gpt.train = lambda mode=True: whole.gpt  # frozen: it stays as it is
    fit(
        whole,
        loaders["train"],
        loss_fn=SST.loss_fn,
        evaluate=lambda m: SST.evaluate(m, loaders["dev"], WORKER.device),
        options=fit_options(args, metric="dev_acc"),
        folder=RunFolder(tmp_path / "b", "sst", "x", args),
        worker=WORKER,
    )
    assert (whole.sentiment_head.weight - start).abs().max() > 1e-3
    for one, other in zip(
        cached.sentiment_head.parameters(), whole.sentiment_head.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    found = [predict(model, loaders["dev"], WORKER.device) for model in (cached, whole)]
    assert found[0] == found[1]
    histories = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in text.splitlines()
        ]
        for text in (
            next((tmp_path / run).glob("*/metrics.jsonl")).read_text() for run in ("a", "b")
        )
    ]
    assert len(histories[0]) == 4
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_frozen_gpt2_reads_each_text_once_whatever_the_number_of_epochs(
    words, tmp_path, monkeypatch
):
    rows = []
    embed = GPT2Model.embed

    def counting(self, input_ids):
        rows.append(len(input_ids))
        return embed(self, input_ids)

    args = SST.get_args([str(word) for word in [*words, "--epochs", "5"]])
    model, loaders = prepared(args)
    monkeypatch.setattr(GPT2Model, "embed", counting)
    train(SST, args, model, loaders, RunFolder("r", "sst", "x", args), WORKER)
    assert sum(rows) == 40 + 20


def test_a_frozen_gpt2_is_left_as_it_was(words, model_folder):
    args = SST.get_args([str(word) for word in [*words, "--lr", "0.1"]])
    model, loaders = prepared(args)
    train(SST, args, model, loaders, RunFolder("r", "sst", "x", args), WORKER)
    for name, weight in GPT2Model.from_pretrained(str(model_folder)).state_dict().items():
        assert torch.equal(model.gpt.state_dict()[name], weight)


@pytest.mark.parametrize("mode", MODES)
def test_the_model_holds_its_best_epoch_afterwards(words, mode, monkeypatch):
    args = SST.get_args([str(word) for word in [*words, "--epochs", "4", "--fine-tune-mode", mode]])
    scores, heads = [0.1, 0.5, 0.5, 0.2], []

    def scripted(model, loader, device, **how):
        heads.append(model.sentiment_head.weight.detach().clone())
        return {"dev_acc": scores[len(heads) - 1], "dev_f1": 0.0}

    model, loaders = prepared(args)
    monkeypatch.setattr(SST, "evaluate", scripted)
    train(SST, args, model, loaders, RunFolder("r", "sst", "x", args), WORKER)
    same = [torch.equal(model.sentiment_head.weight, head) for head in heads]
    assert same == [False, True, False, False]  # of equal ones the first


def test_the_loss_is_cross_entropy_summed_over_rows():
    logits, labels = torch.randn(3, 5), torch.tensor([4, 0, 2])
    expected = sum(-logits[i].log_softmax(0)[label] for i, label in enumerate(labels))
    torch.testing.assert_close(SST.loss_fn(logits, {"labels": labels}), expected)


@pytest.mark.parametrize("mode, rate", [("full-model", "3e-3"), ("last-linear-layer", "5e-2")])
def test_it_learns_which_word_is_praise(words, mode, rate, data, tmp_path, monkeypatch):
    """The last word of each sentence tells its class: chance is 1 in 5."""
    flags = [*words, "--fine-tune-mode", mode, "--lr", rate, "--epochs", 8, "--dataset", "sst"]
    call_main(monkeypatch, "classifier", *flags)
    records = read_sentiment(data / "ids-sst-dev.csv", 5)
    found = predicted(tmp_path / "predictions" / f"{PREFIX[mode]}-sst-dev-out.csv")
    assert sum(int(found[r.sent_id]) == r.label for r in records) / len(records) > 0.7


def test_it_learns_from_the_project_s_own_sample(model_folder, tmp_path, monkeypatch):
    sample = ROOT / "data" / "sample"
    if not (sample / "ids-cfimdb-train.csv").exists():
        pytest.skip("data/sample is not here")
    work_in(monkeypatch, tmp_path)
    train = read_sentiment(sample / "ids-cfimdb-train.csv", 2)
    texts = [record.text for record in train]
    folder = write_model(tmp_path / "model", texts=texts, vocab_size=2000)
    flags = ["--data_dir", sample, "--model_size", folder, "--fine-tune-mode", "full-model"]
    flags += ["--lr", "1e-3", "--epochs", 4, "--dataset", "cfimdb"]
    call_main(monkeypatch, "classifier", *flags)
    records = read_sentiment(sample / "ids-cfimdb-dev.csv", 2)
    found = predicted(tmp_path / "predictions" / "finetune-cfimdb-dev-out.csv")
    majority = max(sum(r.label == label for r in records) for label in (0, 1))
    assert sum(int(found[r.sent_id]) == r.label for r in records) > majority


def test_a_batch_of_the_course_s_keys_is_enough_for_the_model(model_folder):
    """collate's batch, forward(input_ids, attention_mask) by keyword."""
    model = GPT2SentimentClassifier(config(model_folder)).eval()
    batch = collate([{"index": 0, "sent_id": "a", "label": 1, "token_ids": [5, 6, 7]}])
    logits = model(input_ids=batch["token_ids"], attention_mask=batch["attention_mask"])
    assert logits.shape == (1, 5) and logits.dtype == torch.float32
