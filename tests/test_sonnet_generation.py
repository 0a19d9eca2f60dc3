"""Sonnets: what is learnt and what is not, which epoch is kept, and what prompts become."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from course_files import (
    VERSES,
    WORKER,
    call_main,
    no_training,
    sonnets_text,
    work_in,
    write,
)

from engine import completion
from engine.batches import IGNORED_LABEL, collate
from engine.checkpoint import RunFolder
from engine.completion import complete
from engine.errors import InputError
from engine.files import ROOT
from engine.prediction_files import write_sonnets
from engine.records import Record, read_sonnets
from engine.sonnets import split_sonnets
from engine.task import train
from evaluation import sonnet_report
from models.gpt2 import GPT2Model
from sonnet_generation import TASK, SonnetGPT

OUTPUTS = ["generated_sonnets.txt", "generated_sonnets_dev.txt"]


@pytest.fixture(scope="module")
def model(model_folder):
    """Random weights, wider than usual, so that greedy decoding does not say one word for ever."""
    model = SonnetGPT(SimpleNamespace(model_size=str(model_folder))).eval()
    torch.manual_seed(5)
    for parameter in model.gpt.gpt_layers.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def words(tmp_path, monkeypatch, data, model_folder):
    """The flags that every run here shares; outputs go below tmp_path."""
    work_in(monkeypatch, tmp_path)
    flags = ["--data_dir", data, "--model_size", model_folder, "--epochs", "2"]
    return [*flags, "--max_new_tokens", "12"]


def parsed(words):
    return TASK.get_args([str(word) for word in words])


def prompts_of(*lengths) -> list[Record]:
    """Prompts of three lines each and of unlike lengths."""
    return [
        Record(str(i), "\n".join(["the rose"] * 2 + ["my " * n + "love"]))
        for i, n in enumerate(lengths)
    ]


# -- what is learnt ----------------------------------------------------------------------------


def test_each_sonnet_ends_with_one_end_token_which_is_learnt(words, model):
    loaders = TASK.build_loaders(parsed(words), model.tokenizer, 512, WORKER)
    end = model.tokenizer.eos_token_id
    for split in ("train", "dev"):
        dataset = loaders[split].dataset
        for ids, labels in zip(dataset.token_ids, dataset.labels, strict=True):
            assert ids.count(end) == 1 and ids[-1] == end
            assert labels == [*ids[1:], IGNORED_LABEL]
    batch = next(iter(loaders["train"]))
    ends = (batch["labels"] == end).sum(dim=1)
    assert ends.tolist() == [1] * len(ends)
    at = (batch["labels"] == end).nonzero()[0]
    logits = torch.zeros(*batch["token_ids"].shape, 400, requires_grad=True)
    TASK.loss_fn(logits, batch).backward()
    assert logits.grad[at[0], at[1]].abs().sum() > 0
    assert logits.grad[batch["labels"] == IGNORED_LABEL].abs().sum() == 0


def test_the_text_that_is_learnt_is_the_sonnet_itself(words, model, data):
    loaders = TASK.build_loaders(parsed(words), model.tokenizer, 512, WORKER)
    decoded = [model.tokenizer.decode(ids[:-1]) for ids in loaders["train"].dataset.token_ids]
    assert decoded == [sonnet.text for sonnet in read_sonnets(data / "sonnets.txt")]


def test_more_padding_changes_neither_loss_nor_gradient(model):
    """Both with padding that a longer neighbour brings, and with other tokens in it."""
    rows = [[5, 6, 7, 8], [9, 10]]
    examples = [
        {"index": i, "sent_id": str(i), "token_ids": ids, "label": [*ids[1:], IGNORED_LABEL]}
        for i, ids in enumerate(rows)
    ]
    batch = collate(examples)
    padding = torch.zeros(2, 5, dtype=torch.long)
    longer = {
        "token_ids": torch.cat([batch["token_ids"], padding + 3], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], padding], dim=1),
        "labels": torch.cat([batch["labels"], padding + IGNORED_LABEL], dim=1),
    }
    results = []
    for b in (batch, longer):
        model.zero_grad()
        loss = TASK.loss_fn(model(b["token_ids"], b["attention_mask"]), b)
        loss.backward()
        results.append((loss.detach(), model.gpt.word_embedding.weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
    alone = sum(
        TASK.loss_fn(model(b["token_ids"], b["attention_mask"]), b)
        for b in (collate([example]) for example in examples)
    )
    torch.testing.assert_close(alone.detach(), results[0][0], rtol=1e-6, atol=1e-6)


def test_logits_are_those_of_every_position_s_next_token(model_folder, model):
    ids, mask = torch.randint(200, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    logits = model(ids, mask)
    hidden = model.gpt(ids, mask)["last_hidden_state"]
    torch.testing.assert_close(logits, hidden @ model.gpt.word_embedding.weight.T)
    assert logits.shape == (2, 6, len(model.tokenizer))


# -- which sonnets, which epoch ----------------------------------------------------------------


def sonnet_files(folder, *, gold, held_out) -> list[str]:
    """Flags for sonnet files of which some sonnets stand in both gold and held-out."""
    write(folder / "train.txt", sonnets_text(range(1, 31)))
    flags = ["--sonnet_path", folder / "train.txt", "--dev_gold_path", folder / "gold.txt"]
    if gold:
        text = "".join(f"\n{n}\n\nline {w}\nsecond\nthird\nfourth {w}\n\n" for n, w in gold)
        write(folder / "gold.txt", text)
    text = "".join(f"\n{n}\n\n  Line {w}, \n\nsecond!\nthird\n\n" for n, w in held_out)
    write(folder / "held_out.txt", text)
    return [*flags, "--held_out_sonnet_path", folder / "held_out.txt"]


def test_dev_sonnets_that_are_held_out_prompts_too_are_left_out_and_named(tmp_path):
    flags = sonnet_files(
        tmp_path,
        gold=[(132, "a"), (138, "twice"), (140, "b"), (141, "again")],
        held_out=[(155, "twice"), (156, "c"), (157, "again")],
    )
    said = []
    splits = split_sonnets(parsed(flags), said.append)
    assert [sonnet.sent_id for sonnet in splits["dev"]] == ["132", "140"]
    assert len(splits["train"]) == 30
    assert said == ["dev sonnet 138, 141: a held-out prompt too, not used to choose an epoch"]


def test_a_dev_sonnet_whose_first_line_alone_is_a_held_out_prompt_is_left_out(tmp_path):
    flags = sonnet_files(tmp_path, gold=[(132, "a"), (138, "b")], held_out=[])
    write(tmp_path / "held_out.txt", "155\n\nLine b,\n")
    said = []
    [sonnet] = split_sonnets(parsed(flags), said.append)["dev"]
    assert sonnet.sent_id == "132" and said[0].startswith("dev sonnet 138: ")


def test_nothing_is_said_where_no_dev_sonnet_is_held_out(tmp_path):
    flags = sonnet_files(tmp_path, gold=[(132, "a")], held_out=[(155, "b")])
    said = []
    assert len(split_sonnets(parsed(flags), said.append)["dev"]) == 1 and said == []


def test_without_the_dev_sonnets_text_a_tenth_of_train_chooses_and_that_is_said(tmp_path):
    flags = sonnet_files(tmp_path, gold=[], held_out=[(155, "b")])
    said = []
    splits = split_sonnets(parsed(flags), said.append)
    assert [sonnet.sent_id for sonnet in splits["dev"]] == ["28", "29", "30"]
    assert [sonnet.sent_id for sonnet in splits["train"]] == [str(i) for i in range(1, 28)]
    assert said == [f"{tmp_path}/gold.txt: not there, the last 3 of train choose the epoch"]


def test_too_few_sonnets_to_choose_by_are_an_error(tmp_path):
    flags = sonnet_files(tmp_path, gold=[(138, "twice")], held_out=[(155, "twice")])
    with pytest.raises(InputError, match="too few sonnets"):
        split_sonnets(parsed(flags), lambda message: None)


def scripted_run(words, monkeypatch, losses, *flags) -> tuple[int, list[bool]]:
    """Train while `evaluate` says `losses`: epochs run, and whose weights the model holds."""
    seen = []

    def scripted(model, loader, device, forward):
        seen.append(model.gpt.final_layer_norm.weight.detach().clone())
        loss = losses[len(seen) - 1]
        return {"dev_loss": loss, "dev_perplexity": -loss}  # the wrong figure says the opposite

    args = parsed([*words, "--epochs", len(losses), "--lr", "1e-3", *flags])
    monkeypatch.setattr(TASK, "evaluate", scripted)
    model, args = TASK.start(args)
    loaders = TASK.build_loaders(args, model.tokenizer, 512, WORKER)
    folder = RunFolder("r", "sonnet", "x", args)
    train(TASK, args, model, loaders, folder, WORKER)
    return len(seen), [torch.equal(model.gpt.final_layer_norm.weight, w) for w in seen]


def test_the_epoch_of_the_lowest_dev_loss_is_kept(words, monkeypatch):
    epochs, held = scripted_run(words, monkeypatch, [3.0, 1.0, 2.0, 1.0])
    assert (epochs, held) == (4, [False, True, False, False])


@pytest.mark.parametrize("patience, epochs", [(1, 2), (2, 5), (3, 6), (0, 8)])
def test_training_stops_after_as_many_epochs_without_a_better_one(
    words, monkeypatch, patience, epochs
):
    losses = [4.0, 5.0, 3.0, 3.0, 6.0, 7.0, 8.0, 9.0]
    ran, held = scripted_run(words, monkeypatch, losses, "--patience", patience)
    assert ran == epochs
    assert held.index(True) == (0 if patience == 1 else 2) and sum(held) == 1


def test_the_dev_perplexity_is_the_exponential_of_the_dev_loss(words, tmp_path, monkeypatch):
    call_main(monkeypatch, "sonnet_generation", *words)
    [metrics] = (tmp_path / "runs").glob("*/metrics.jsonl")
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        assert record["dev_perplexity"] == pytest.approx(math.exp(record["dev_loss"]), rel=1e-5)
        assert 4 < record["dev_loss"] < 7  # a model that knows nothing: log of 400 tokens is 6


# -- generating --------------------------------------------------------------------------------


@pytest.mark.parametrize("as_dict", [True, False])
def test_generate_returns_token_ids_and_the_whole_text(model, as_dict):
    prompt = "Thou rose, my love is fair\n"
    encoding = model.tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    given = encoding if as_dict else encoding["input_ids"]
    ids, text = model.generate(given, temperature=0.7, top_p=0.9, max_length=10)
    t = encoding["input_ids"].shape[1]
    assert ids.dim() == 2 and ids.shape[0] == 1 and t < ids.shape[1] <= t + 10
    assert torch.equal(ids[:, :t], encoding["input_ids"])
    assert text.startswith(prompt)  # nothing is cut off
    assert text == model.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_generate_has_the_course_s_defaults(model):
    import inspect

    parameters = inspect.signature(SonnetGPT.generate).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    assert defaults == {"temperature": 0.7, "top_p": 0.9, "max_length": 128}


def test_generate_stops_at_the_end_token_and_leaves_it_out_of_the_text(model_folder):
    """A model that wants nothing but the end."""
    model = SonnetGPT(SimpleNamespace(model_size=str(model_folder)))
    end = model.tokenizer.eos_token_id
    with torch.no_grad():
        model.gpt.final_layer_norm.weight.zero_()
        model.gpt.final_layer_norm.bias.copy_(100 * model.gpt.word_embedding.weight[end])
    encoding = model.tokenizer("the rose", return_tensors="pt")
    ids, text = model.generate(encoding, temperature=0)
    assert ids[0].tolist() == [*encoding["input_ids"][0].tolist(), end]
    assert text == "the rose"


def test_prompts_are_three_lines_and_end_in_a_newline(model, monkeypatch):
    seen = []

    def spy(gpt, input_ids, attention_mask, **how):
        rows = zip(input_ids, attention_mask.sum(dim=1), strict=True)
        seen.extend(model.tokenizer.decode(row[:n]) for row, n in rows)
        return list(input_ids)

    monkeypatch.setattr(completion, "generate", spy)
    prompts = [Record("1", "one\ntwo\n  three"), Record("2", "one\ntwo\nthree\nfour\nfive")]
    prompts += [Record("3", "one\n\ntwo\n \nthree\n\nfour"), Record("4", "one")]
    complete(model, prompts, parsed([]))
    assert seen == ["one\ntwo\n  three\n", *["one\ntwo\nthree\n"] * 2, "one\n"]


def test_prompts_in_one_batch_are_continued_as_each_alone(model):
    prompts = prompts_of(0, 9, 3, 1)
    args = parsed(["--temperature", "0", "--max_new_tokens", "30"])
    together = complete(model, prompts, args)
    alone = [sonnet for prompt in prompts for sonnet in complete(model, [prompt], args)]
    assert together == alone
    assert len({sonnet.text for sonnet in together}) == 4
    assert [sonnet.sent_id for sonnet in together] == ["0", "1", "2", "3"]
    for prompt, sonnet in zip(prompts, together, strict=True):
        assert sonnet.text.startswith(prompt.text + "\n")
        ids = model.tokenizer(prompt.text + "\n", return_tensors="pt")
        assert model.generate(ids, temperature=0, max_length=30)[1].strip() == sonnet.text


def test_the_seed_alone_decides_the_draws(model):
    prompts = prompts_of(0, 4)
    first, again, other = (
        complete(model, prompts, parsed(["--max_new_tokens", "20", "--seed", seed]))
        for seed in ("1", "1", "2")
    )
    assert first == again and first != other
    torch.manual_seed(3)  # nor does what was drawn before matter
    torch.rand(5)
    assert complete(model, prompts, parsed(["--max_new_tokens", "20", "--seed", "1"])) == first


@pytest.mark.parametrize("most", [1, 7])
def test_no_more_than_max_new_tokens_are_added(model, monkeypatch, most):
    added, generate = [], completion.generate

    def spy(gpt, input_ids, attention_mask, **how):
        rows = generate(gpt, input_ids, attention_mask, **how)
        lengths = attention_mask.sum(dim=1)
        added.extend(len(row) - int(n) for row, n in zip(rows, lengths, strict=True))
        return rows

    monkeypatch.setattr(completion, "generate", spy)
    complete(model, prompts_of(0, 5, 2), parsed(["--max_new_tokens", str(most)]))
    assert len(added) == 3 and max(added) == most


def test_temperature_and_top_p_reach_the_draw(model):
    """A tiny temperature, a tiny nucleus and top_k 1 are all greedy; 1.2 is not."""
    prompts = prompts_of(0, 4)

    def texts(*flags):
        args = parsed(["--max_new_tokens", "20", *flags])
        return [sonnet.text for sonnet in complete(model, prompts, args)]

    greedy = texts("--temperature", "0")
    assert texts("--temperature", "1e-6") == greedy
    assert texts("--top_p", "1e-6") == greedy
    assert texts("--top_k", "1") == greedy
    assert texts() != greedy


# -- flags and programs ------------------------------------------------------------------------


def test_the_course_s_flags_have_the_course_s_defaults():
    args = vars(TASK.get_args([]))
    course = {
        "sonnet_path": "data/sonnets.txt",
        "held_out_sonnet_path": "data/sonnets_held_out.txt",
        "sonnet_out": "predictions/generated_sonnets.txt",
        "seed": 11711,
        "epochs": 10,
        "use_gpu": False,
        "temperature": 1.2,
        "top_p": 0.9,
        "batch_size": 8,
        "lr": 1e-5,
        "model_size": "gpt2",
    }
    assert {name: args[name] for name in course} == course
    assert args["max_new_tokens"] > 128  # too few for eleven lines


def test_a_run_writes_both_files_with_header_and_indices(
    words, data, tmp_path, monkeypatch, capsys
):
    call_main(monkeypatch, "sonnet_generation", *words)
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == OUTPUTS
    prompts = {"generated_sonnets.txt": "sonnets_held_out.txt"}
    prompts["generated_sonnets_dev.txt"] = "sonnets_held_out_dev.txt"
    for name, file in prompts.items():
        path = tmp_path / "predictions" / name
        assert path.read_text(encoding="utf-8").split("\n")[0] == "--Generated Sonnets--"
        for sonnet, prompt in zip(read_sonnets(path), read_sonnets(data / file), strict=True):
            assert sonnet.sent_id == prompt.sent_id
            assert sonnet.text.startswith(prompt.text)
            assert len(sonnet.text) > len(prompt.text)
    gold = read_sonnets(data / "TRUE_sonnets_held_out_dev.txt")
    report = sonnet_report(read_sonnets("predictions/generated_sonnets_dev.txt"), gold)
    said = capsys.readouterr().out.splitlines()
    [row] = [line for line in said if line.startswith("generated ")]
    assert row.split()[1:] == [f"{value:.3f}" for value in report.values()]
    assert any(line.startswith("random lines") for line in said)
    assert any(line.startswith("sonnet: lr 1e-05") for line in said)


def test_the_same_seed_gives_the_same_files_and_another_one_others(words, tmp_path, monkeypatch):
    texts = []
    for seed in (1, 1, 2):
        call_main(monkeypatch, "sonnet_generation", *words, "--seed", seed)
        texts.append([(tmp_path / "predictions" / name).read_bytes() for name in OUTPUTS])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[2][0] and texts[0][1] != texts[2][1]


def test_a_checkpoint_generates_what_the_run_generated(words, tmp_path, monkeypatch):
    call_main(monkeypatch, "sonnet_generation", *words, "--lr", "1e-3")
    outputs = [tmp_path / "predictions" / name for name in OUTPUTS]
    first = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    [best] = (tmp_path / "runs").glob("*/best.safetensors")
    monkeypatch.setattr("engine.task.fit", no_training)
    flags = ["--data_dir", words[1], "--max_new_tokens", "12", "--checkpoint", best]
    call_main(monkeypatch, "sonnet_generation", *flags)
    assert [path.read_bytes() for path in outputs] == first
    call_main(monkeypatch, "sonnet_generation", *flags, "--temperature", "0")
    assert [path.read_bytes() for path in outputs] != first


def test_a_run_without_the_dev_sonnets_text_writes_both_files_and_no_scores(
    words, data, tmp_path, monkeypatch, capsys
):
    call_main(monkeypatch, "sonnet_generation", *words, "--dev_gold_path", "nowhere.txt")
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == OUTPUTS
    said = capsys.readouterr().out
    assert "nowhere.txt: not there, the last 1 of train choose the epoch" in said
    assert "chrf" not in said


def test_limit_takes_the_first_prompts(words, tmp_path, monkeypatch, capsys):
    call_main(monkeypatch, "sonnet_generation", *words, "--limit", 2)
    names = [name.replace(".txt", ".limit-2.txt") for name in OUTPUTS]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == sorted(names)
    for name in names:
        assert len(read_sonnets(tmp_path / "predictions" / name)) == 2
    assert "2 sonnets are in" in capsys.readouterr().out


def test_gold_sonnets_that_do_not_fit_the_dev_prompts_are_refused_before_training(
    words, tmp_path, monkeypatch, capsys
):
    write("gold.txt", sonnets_text(range(132, 135), seed=1))  # three, for four prompts
    monkeypatch.setattr("engine.task.fit", no_training)
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "sonnet_generation", *words, "--dev_gold_path", "gold.txt")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "sonnets_held_out_dev.txt: sonnet 135 without a partner" in error
    assert error.startswith("error: ") and "gold.txt" in error


def table(capsys) -> list[list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return [line.split() for line in lines if line.startswith(("generated ", "random lines"))]


def test_gold_sonnets_in_another_order_give_the_same_figures(words, data, monkeypatch, capsys):
    gold = read_sonnets(data / "TRUE_sonnets_held_out_dev.txt")
    write_sonnets("gold.txt", [replace(g, sent_id=f"9{g.sent_id}") for g in reversed(gold)])
    tables = []
    for flags in ([], ["--dev_gold_path", "gold.txt"]):
        call_main(monkeypatch, "sonnet_generation", *words, *flags, "--limit", 3)
        tables.append(table(capsys))
    assert len(tables[0]) == 2 and tables[0] == tables[1]


def test_prompts_of_one_line_and_their_continuations_are_scored(words, data, monkeypatch, capsys):
    gold = read_sonnets(data / "TRUE_sonnets_held_out_dev.txt")
    gold = [replace(g, text=f"only {'abcd'[i]}\n{g.text}") for i, g in enumerate(gold)]
    prompts = [replace(g, text=g.text.split("\n")[0]) for g in gold]
    write_sonnets("gold.txt", gold)
    write_sonnets("prompts.txt", prompts)
    flags = ["--dev_sonnet_path", "prompts.txt", "--dev_gold_path", "gold.txt"]
    call_main(monkeypatch, "sonnet_generation", *words, *flags, "--max_new_tokens", 40)
    generated = read_sonnets("predictions/generated_sonnets_dev.txt")
    report = sonnet_report(generated, gold, prompts)
    ours, null = table(capsys)
    assert ours[1:] == [f"{value:.3f}" for value in report.values()]
    assert ours[2] != f"{sonnet_report(generated, gold)['chrf_continuation']:.3f}"
    assert float(null[4]) == 14.0


def test_a_sonnet_longer_than_the_model_s_positions_keeps_its_first_tokens_and_no_end(
    words, model, data, capsys
):
    whole = TASK.build_loaders(parsed(words), model.tokenizer, 512, WORKER)["train"].dataset
    cut = TASK.build_loaders(parsed(words), model.tokenizer, 20, WORKER)["train"].dataset
    assert cut.token_ids == [ids[:20] for ids in whole.token_ids]
    assert all(
        labels == [*ids[1:], IGNORED_LABEL]
        for ids, labels in zip(cut.token_ids, cut.labels, strict=True)
    )
    said = capsys.readouterr().out
    assert f"{data / 'sonnets.txt'}: 12 rows are cut to 20 tokens: 1, 2, 3, 4, 5, … 7 more" in said


def test_it_learns_verses_by_heart(words, tmp_path, monkeypatch):
    """Greedy lines are verses of the training sonnets, and the dev loss falls."""
    flags = ["--epochs", 30, "--lr", "5e-3", "--temperature", 0, "--max_new_tokens", 60]
    call_main(monkeypatch, "sonnet_generation", *words, *flags)
    [metrics] = (tmp_path / "runs").glob("*/metrics.jsonl")
    losses = [json.loads(line)["dev_loss"] for line in metrics.read_text().splitlines()]
    assert min(losses) < losses[0] / 3
    for sonnet in read_sonnets(tmp_path / "predictions" / OUTPUTS[0]):
        assert set(sonnet.text.split("\n")[3:-1]) <= set(VERSES)


def test_the_real_program_runs_from_any_folder(data, model_folder, tmp_path):
    command = [sys.executable, str(ROOT / "sonnet_generation.py"), "--data_dir", str(data)]
    command += ["--model_size", str(model_folder), "--epochs", "1", "--max_new_tokens", "8"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(read_sonnets(tmp_path / "predictions" / OUTPUTS[0])) == 3


def test_training_leaves_the_checkpoint_folder_as_it_was(words, model_folder, monkeypatch):
    before = {path: path.read_bytes() for path in model_folder.iterdir()}
    call_main(monkeypatch, "sonnet_generation", *words, "--lr", "1e-2")
    assert {path: path.read_bytes() for path in model_folder.iterdir()} == before
    assert GPT2Model.from_pretrained(str(model_folder)).word_embedding.weight.isfinite().all()
