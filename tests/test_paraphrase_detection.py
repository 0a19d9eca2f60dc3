"""Paraphrases as a cloze: one prompt everywhere, logits of two tokens, answers as the course's."""

import itertools
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from course_files import (
    ANSWERS,
    WORKER,
    call_main,
    no_training,
    predicted,
    sentiment_text,
    work_in,
    write,
)
from torch import nn

import paraphrase_detection
from engine.checkpoint import RunFolder
from engine.errors import InputError
from engine.files import ROOT
from engine.hub import load_tokenizer
from engine.prediction_files import ANSWER_TOKENS, origin
from engine.records import PairRecord, read_pairs
from engine.task import train
from models.gpt2 import GPT2Model
from paraphrase_detection import (
    TASK,
    ParaphraseGPT,
    answer_tokens,
    cloze_prompt,
    shortened_prompt,
)

HEADER = "\tid\tsentence1\tsentence2\tis_duplicate"


@pytest.fixture
def words(tmp_path, monkeypatch, data, model_folder):
    """The flags that every run here shares; outputs go below tmp_path."""
    work_in(monkeypatch, tmp_path)
    return ["--data_dir", data, "--model_size", model_folder, "--epochs", "2"]


def parsed(words):
    return TASK.get_args([str(word) for word in words])


# -- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("no, yes", [(7, 11), (11, 7)])
def test_logits_are_the_tied_embedding_s_of_no_and_yes_at_the_last_real_token(
    model_folder, no, yes
):
    settings = SimpleNamespace(model_size=str(model_folder), answer_tokens=[no, yes])
    model = ParaphraseGPT(settings).eval()
    token_ids = torch.randint(200, (3, 9))
    lengths = (9, 4, 1)
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in lengths])
    logits = model(token_ids, mask)
    assert logits.shape == (3, 2)
    gpt = GPT2Model.from_pretrained(str(model_folder)).eval()
    for row, length in enumerate(lengths):  # alone, so that nothing is padded
        states = gpt(token_ids[row : row + 1, :length])["last_hidden_state"]
        vocabulary = gpt.hidden_state_to_token(states[0, -1])
        torch.testing.assert_close(logits[row], vocabulary[[no, yes]], rtol=1e-5, atol=1e-6)


def test_what_stands_in_the_padding_does_not_matter(model_folder):
    settings = SimpleNamespace(model_size=str(model_folder), answer_tokens=[7, 11])
    model = ParaphraseGPT(settings).eval()
    token_ids, mask = torch.randint(200, (1, 9)), torch.tensor([[1] * 5 + [0] * 4])
    other = torch.where(mask == 1, token_ids, token_ids + 1)
    torch.testing.assert_close(model(token_ids, mask), model(other, mask), rtol=0, atol=0)


def test_the_whole_model_is_trained(model_folder):
    settings = SimpleNamespace(model_size=str(model_folder), answer_tokens=[7, 11])
    model = ParaphraseGPT(settings)
    assert all(parameter.requires_grad for parameter in model.parameters())
    logits = model(torch.randint(200, (2, 5)), torch.ones(2, 5, dtype=torch.long))
    TASK.loss_fn(logits, {"labels": torch.tensor([0, 1])}).backward()
    assert all(p.grad is not None for p in model.gpt.gpt_layers.parameters())


def test_gpt2_s_own_answer_tokens_are_the_default(model_folder):
    """What a grader gets who passes the course's args."""
    model = ParaphraseGPT(SimpleNamespace(model_size=str(model_folder), d=32, l=2, num_heads=4))
    assert model.answer_tokens.tolist() == [3919, 8505]
    assert ANSWER_TOKENS == {0: 3919, 1: 8505}


def test_answer_tokens_are_the_tokenizer_s_no_and_yes(model_folder):
    tokenizer = load_tokenizer(str(model_folder))
    assert [tokenizer.decode([token]) for token in answer_tokens(tokenizer)] == ["no", "yes"]


def test_a_tokenizer_that_cuts_the_answers_is_refused():
    def tokenizer(word):
        return {"input_ids": [5] if word == "no" else [6, 7, 8]}

    with pytest.raises(InputError, match=r"\[\[5\], \[6, 7, 8\]\].*one token"):
        answer_tokens(tokenizer)


def test_class_1_is_yes(model_folder):
    """Pulling towards label 1 makes "yes" likelier, towards 0 "no"."""
    tokenizer = load_tokenizer(str(model_folder))
    settings = SimpleNamespace(model_size=str(model_folder))
    settings.answer_tokens = answer_tokens(tokenizer)
    token_ids = torch.tensor([tokenizer(cloze_prompt("a", "b"))["input_ids"]])
    for label, word in enumerate(("no", "yes")):
        model = ParaphraseGPT(settings).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            logits = model(token_ids, torch.ones_like(token_ids))
            TASK.loss_fn(logits, {"labels": torch.tensor([label])}).backward()
            optimizer.step()
        last = model.gpt(token_ids)["last_token"][0]
        no, yes = model.gpt.hidden_state_to_token(last)[settings.answer_tokens].tolist()
        assert (yes > no) == (word == "yes")


def test_the_loss_is_two_way_cross_entropy_over_classes():
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    loss = TASK.loss_fn(logits, {"labels": labels})
    expected = nn.CrossEntropyLoss(reduction="sum")(logits, labels)
    torch.testing.assert_close(loss, expected)


def test_a_run_s_folder_notes_the_predictions_that_it_made(words, monkeypatch):
    call_main(monkeypatch, "paraphrase_detection", *words, "--limit", 8)
    call_main(monkeypatch, "paraphrase_detection", *words)
    whole = origin("predictions/para-dev-output.csv", "runs")
    assert re.match(r"runs/paraphrase-model\d+-\w{8}, .*, dev acc 0\.\d{3}$", whole)
    assert "--limit 8, dev acc" in origin("predictions/para-test-output.limit-8.csv", "runs")
    shutil.copy("predictions/para-dev-output.limit-8.csv", "predictions/para-dev-output.csv")
    assert "no run in runs wrote" in origin("predictions/para-dev-output.csv", "runs")


# -- prompts and labels ------------------------------------------------------------------------


def test_train_dev_and_test_read_one_and_the_same_prompt(words, data, monkeypatch):
    """The same pair gives the same tokens in all three files, and each pair is asked for once."""
    rows = ["9\tQ1\tWhy me?\tWhy, me?", "8\tQ2\tWho's it?\tWhat is it?"]
    header = "\tid\tsentence1\tsentence2"
    labelled = "\n".join([f"{header}\tis_duplicate", *(f"{row}\t1.0" for row in rows)])
    paths = {"para_train": "a.csv", "para_dev": "b.csv", "para_test": "c.csv"}
    for flag, name in paths.items():
        write(name, "\n".join([header, *rows]) if flag == "para_test" else labelled)
    asked, texts = [], []

    def spy(sentence1, sentence2):
        asked.append((sentence1, sentence2))
        return cloze_prompt(sentence1, sentence2)

    def counting(batch):
        texts.extend(batch)
        return tokenizer(batch)

    monkeypatch.setattr(paraphrase_detection, "cloze_prompt", spy)
    args = parsed([*words, *(w for f, name in paths.items() for w in (f"--{f}", name))])
    tokenizer = load_tokenizer(args.model_size)
    loaders = TASK.build_loaders(args, counting, 512, WORKER)
    assert asked == 3 * [("why me ?", "why , me ?"), ("who 's it ?", "what is it ?")]
    tokens = [loaders[split].dataset.token_ids for split in ("train", "dev", "test")]
    assert tokens[0] == tokens[1] == tokens[2]
    assert texts == 3 * [cloze_prompt(*pair) for pair in asked[:2]]
    assert "why me ?" in texts[0] and "why , me ?" in texts[0]
    assert "yes" not in texts[0] and "no" not in texts[0].split()


def test_of_questions_that_are_too_long_the_longer_one_is_cut_and_the_prompts_end_stays(words):
    tokenizer = load_tokenizer(parsed(words).model_size)
    end = '"?\n'
    lengths = [(1, 90), (90, 1), (60, 60), (30, 45), (200, 3)]
    for (first, second), limit in itertools.product(lengths, (40, 55, 56, 57)):
        pair = PairRecord("a", "good film " * first, "é poor plot " * second)
        ids = shortened_prompt(tokenizer, pair, limit)
        text = tokenizer.decode(ids)
        assert limit - 3 <= len(ids) <= limit and text.endswith(end), (first, second, limit)
        if second == 1:
            assert text.endswith(f' a paraphrase of "{pair.sentence2}{end}')
        if first == 1:
            assert text.startswith(f'Is "{pair.sentence1}" a paraphrase of ')


def test_pairs_that_are_too_long_are_counted_and_the_others_stay_as_they_are(words, capsys):
    write("long.csv", f"{HEADER}\n0\ta\t{'good film ' * 400}\tbad?\t1\n1\tb\tx\ty\t0\n")
    args = parsed([*words, "--para_train", "long.csv"])
    tokenizer = load_tokenizer(args.model_size)
    cut, whole = TASK.build_loaders(args, tokenizer, 512, WORKER)["train"].dataset.token_ids
    assert len(cut) <= 512 and whole == tokenizer(cloze_prompt("x", "y"))["input_ids"]
    assert "long.csv: 1 rows are cut to 512 tokens: a\n" in capsys.readouterr().out


def test_labels_are_the_classes_0_and_1_and_the_test_file_has_none(words):
    args = parsed(words)
    loaders = TASK.build_loaders(args, load_tokenizer(args.model_size), 512, WORKER)
    for split in ("train", "dev"):
        assert {label for b in loaders[split] for label in b["labels"].tolist()} == {0, 1}
    assert all("labels" not in batch for batch in loaders["test"])


def test_only_the_training_rows_are_shuffled(words):
    args = parsed(words)
    loaders = TASK.build_loaders(args, load_tokenizer(args.model_size), 512, WORKER)
    for split, changes in {"train": True, "dev": False, "test": False}.items():
        orders = []
        for epoch in (0, 1):
            loaders[split].batch_sampler.set_epoch(epoch)
            orders.append([batch["indices"] for batch in loaders[split]])
        assert (orders[0] != orders[1]) == changes


# -- flags -------------------------------------------------------------------------------------


def test_the_course_s_flags_have_the_course_s_defaults():
    args = vars(TASK.get_args([]))
    course = {
        "para_train": "data/quora-train.csv",
        "para_dev": "data/quora-dev.csv",
        "para_test": "data/quora-test-student.csv",
        "para_dev_out": "predictions/para-dev-output.csv",
        "para_test_out": "predictions/para-test-output.csv",
        "seed": 11711,
        "epochs": 10,
        "use_gpu": False,
        "batch_size": 8,
        "lr": 1e-5,
        "model_size": "gpt2",
    }
    assert {name: args[name] for name in course} == course


@pytest.mark.parametrize("given_first", [True, False])
def test_data_dir_moves_the_defaults_and_leaves_given_paths(given_first):
    given, folder = ["--para_dev", "my/dev.csv"], ["--data_dir", "there"]
    args = TASK.get_args([*given, *folder] if given_first else [*folder, *given])
    assert (args.para_train, args.para_dev) == ("there/quora-train.csv", "my/dev.csv")
    assert args.para_test == "there/quora-test-student.csv"
    assert args.para_dev_out == "predictions/para-dev-output.csv"


# -- end to end --------------------------------------------------------------------------------


def test_a_run_writes_the_course_s_answers_for_dev_and_test(
    words, data, tmp_path, monkeypatch, capsys
):
    call_main(monkeypatch, "paraphrase_detection", *words)
    names = ["para-dev-output.csv", "para-test-output.csv"]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == names
    for name, split in zip(names, ("dev", "test-student"), strict=True):
        path = tmp_path / "predictions" / name
        records = read_pairs(data / f"quora-{split}.csv", labelled=split == "dev").records
        assert list(predicted(path)) == [record.sent_id for record in records]  # in order
        assert set(predicted(path).values()) <= ANSWERS  # though "no" is another token here
        assert path.read_bytes().startswith(b"id, Predicted_Is_Paraphrase \n")
        assert all(line.endswith(b" ") for line in path.read_bytes().splitlines())
    said = capsys.readouterr().out
    assert "paraphrase: lr 1e-05" in said
    for file, rows in {"train": 40, "dev": 20, "test-student": 13}.items():
        [line] = [line for line in said.splitlines() if f"quora-{file}.csv: 1 " in line]
        assert "1 incomplete rows are left out" in line and f"line {rows + 2} (id q" in line


def test_the_printed_scores_are_those_of_the_written_answers(
    words, data, tmp_path, monkeypatch, capsys
):
    from sklearn.metrics import accuracy_score, f1_score

    call_main(monkeypatch, "paraphrase_detection", *words, "--lr", "1e-3")
    records = read_pairs(data / "quora-dev.csv", labelled=True).records
    y_pred = [int(v == "8505") for v in predicted("predictions/para-dev-output.csv").values()]
    y_true = [record.label for record in records]
    accuracy, f1 = accuracy_score(y_true, y_pred), f1_score(y_true, y_pred, average="macro")
    said = capsys.readouterr().out.splitlines()
    assert f"paraphrase: dev acc :: {accuracy:.3f}, dev f1 :: {f1:.3f}" in said


def test_outputs_go_where_the_flags_say_and_limit_takes_the_first_rows(
    words, data, tmp_path, monkeypatch
):
    outs = ["--para_dev_out", "here/d.csv", "--para_test_out", tmp_path / "t.csv", "--limit", 3]
    call_main(monkeypatch, "paraphrase_detection", *words, *outs)
    records = read_pairs(data / "quora-dev.csv", labelled=True).records
    assert list(predicted("here/d.csv")) == [record.sent_id for record in records[:3]]
    assert len(predicted("t.csv")) == 3
    assert list((tmp_path / "predictions").glob("*")) == []


def test_a_checkpoint_predicts_what_the_run_predicted(words, tmp_path, monkeypatch, capsys):
    call_main(monkeypatch, "paraphrase_detection", *words, "--lr", "1e-3")
    outputs = sorted((tmp_path / "predictions").iterdir())
    first = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    [best] = (tmp_path / "runs").glob("*/best.safetensors")
    said = capsys.readouterr().out.splitlines()
    [scores] = [line for line in said if line.startswith("paraphrase: dev acc")]
    monkeypatch.setattr("engine.task.fit", no_training)
    flags = ["--data_dir", words[1], "--checkpoint", best]  # no --model_size: it is in the file
    call_main(monkeypatch, "paraphrase_detection", *flags)
    assert [path.read_bytes() for path in outputs] == first
    assert scores in capsys.readouterr().out


def test_the_model_holds_its_best_epoch_afterwards(words, monkeypatch):
    args = parsed([*words, "--epochs", "3"])
    scores, seen = [0.1, 0.6, 0.3], []

    def scripted(model, loader, device, forward):
        seen.append(model.gpt.final_layer_norm.weight.detach().clone())
        return {"dev_acc": scores[len(seen) - 1], "dev_f1": 0.0}

    monkeypatch.setattr(TASK, "evaluate", scripted)
    model, args = TASK.start(args)
    loaders = TASK.build_loaders(args, load_tokenizer(args.model_size), 512, WORKER)
    folder = RunFolder("r", "paraphrase", "x", args)
    train(TASK, args, model, loaders, folder, WORKER)
    same = [torch.equal(model.gpt.final_layer_norm.weight, weight) for weight in seen]
    assert same == [False, True, False]


def test_it_learns_which_pairs_say_the_same(words, data, tmp_path, monkeypatch):
    """One word tells it: chance is 1 in 2."""
    flags = [*words, "--lr", "3e-3", "--epochs", 8]
    call_main(monkeypatch, "paraphrase_detection", *flags)
    records = read_pairs(data / "quora-dev.csv", labelled=True).records
    answers = predicted("predictions/para-dev-output.csv")
    right = sum((answers[r.sent_id] == "8505") == bool(r.label) for r in records)
    assert right / len(records) > 0.8


def test_the_real_program_runs_from_any_folder(data, model_folder, tmp_path):
    command = [sys.executable, str(ROOT / "paraphrase_detection.py"), "--data_dir", str(data)]
    command += ["--model_size", str(model_folder), "--epochs", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(predicted(tmp_path / "predictions" / "para-dev-output.csv")) == 20


def test_a_sentiment_file_in_the_place_of_a_quora_file_is_refused(words, tmp_path):
    write("a.csv", sentiment_text(5, 3, labelled=True))
    args = parsed([*words, "--para_train", "a.csv"])
    with pytest.raises(InputError, match=r"a\.csv, line 1: no column sentence1"):
        TASK.build_loaders(args, None, 512, WORKER)
