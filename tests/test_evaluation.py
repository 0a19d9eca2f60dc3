"""Figures equal those of sklearn, sacrebleu and HuggingFace; files come out byte for byte."""

import math
import random
import re
import subprocess
import sys

import pytest
import torch
from course_files import COURSE_DATA, call_main, sonnets_text, work_in, write
from torch import nn

import evaluation
from engine.batches import TokenDataset, make_loader, next_token_labels, next_token_loss
from engine.errors import InputError
from engine.files import ROOT
from engine.predicting import Predictions, accuracy_and_f1, predict
from engine.prediction_files import write_predictions, write_sonnets
from engine.records import Record, read_sonnets
from engine.sonnets import continuation, null_baseline, opening, partners, prompt_text, verses
from evaluation import (
    chrf,
    cross_entropy,
    distinct_n,
    model_eval_paraphrase,
    model_test_paraphrase,
    perplexity,
    report_table,
    sonnet_report,
)
from models.gpt2 import GPT2Model

CPU = torch.device("cpu")
needs_course_data = pytest.mark.skipif(
    not COURSE_DATA.is_dir(), reason="the course's data are not here"
)


class FirstToken(torch.nn.Module):
    """Predicts as class the first token of a row; fails if it is left in training mode."""

    def forward(self, input_ids, attention_mask):
        assert not self.training and not torch.is_grad_enabled()
        return torch.nn.functional.one_hot(input_ids[:, 0], 5).float()


def poem(number, *lines) -> Record:
    return Record(str(number), "\n".join(lines))


# -- classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_accuracy_and_f1_are_sklearn_s(classes):
    from sklearn.metrics import accuracy_score, f1_score

    torch.manual_seed(classes)
    predicted, labels = torch.randint(classes, (2, 50)).tolist()
    scores = accuracy_and_f1(Predictions(["x"] * 50, predicted, labels))
    assert scores["acc"] == pytest.approx(accuracy_score(labels, predicted))
    assert scores["f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores["f1"] != pytest.approx(f1_score(labels, predicted, average="micro"))


def test_macro_f1_of_a_small_table_by_hand():
    """Class 0: precision 2/3, recall 1; class 1: precision 1, recall 1/2."""
    scores = accuracy_and_f1(Predictions(list("abcd"), [0, 0, 0, 1], [0, 0, 1, 1]))
    assert scores["acc"] == 0.75
    assert scores["f1"] == pytest.approx((0.8 + 2 / 3) / 2)


@pytest.mark.parametrize("shuffle", [True, False])
def test_predictions_come_in_the_file_s_order(shuffle):
    lengths = [9, 1, 7, 3, 5, 2, 8]
    classes = [4, 0, 3, 1, 2, 0, 4]
    token_ids = [[c] + [1] * (n - 1) for c, n in zip(classes, lengths, strict=True)]
    dataset = TokenDataset(token_ids, list("gfedcba"), list(range(7)))
    found = predict(FirstToken(), make_loader(dataset, 2, shuffle=shuffle), CPU)
    assert found == Predictions(list("gfedcba"), classes, list(range(7)))


def grader_s_batches(labelled: bool) -> list[dict]:
    """What a grader's own DataLoader yields: the course's keys, nothing else."""
    batches = []
    for ids, tokens, labels in (("ab", [[1, 2], [0, 3]], [1, 1]), ("c", [[1, 0]], [0])):
        batch = {
            "token_ids": torch.tensor(tokens),
            "attention_mask": torch.ones(len(ids), 2, dtype=torch.long),
            "sent_ids": list(ids),
        }
        batches.append(batch | ({"labels": torch.tensor(labels)} if labelled else {}))
    return batches


def test_perplexity_is_the_exponential_of_any_loss():
    assert perplexity(0.0) == 1.0 and perplexity(3.5) == pytest.approx(math.exp(3.5), rel=1e-12)
    assert perplexity(710.0) == perplexity(math.inf) == math.inf and math.isnan(
        perplexity(math.nan)
    )


def test_paraphrases_are_evaluated_by_the_course_s_signature():
    result = model_eval_paraphrase(grader_s_batches(labelled=True), FirstToken(), CPU)
    accuracy, f1, y_pred, y_true, sent_ids = result
    assert (y_pred, y_true, sent_ids) == ([1, 0, 1], [1, 1, 0], ["a", "b", "c"])
    assert accuracy == pytest.approx(1 / 3) and f1 == pytest.approx(0.25)


def test_paraphrases_are_predicted_by_the_course_s_signature():
    batches = grader_s_batches(labelled=False)
    assert model_test_paraphrase(batches, FirstToken(), CPU) == ([1, 0, 1], ["a", "b", "c"])


def test_paraphrases_are_evaluated_from_a_torch_loader_and_in_training_mode():
    loader = torch.utils.data.DataLoader(
        grader_s_batches(labelled=True), batch_size=None, num_workers=0
    )
    assert model_eval_paraphrase(loader, FirstToken().train(), "cpu")[4] == ["a", "b", "c"]


# -- files -------------------------------------------------------------------------------------


def test_a_prediction_file_is_the_course_s_byte_for_byte(tmp_path):
    write_predictions(tmp_path / "new" / "p.csv", "Predicted_Sentiment", ["a1", "b2"], [3, 0])
    assert (tmp_path / "new" / "p.csv").read_bytes() == (
        b"id, Predicted_Sentiment \na1, 3 \nb2, 0 \n"
    )


def test_prediction_files_with_too_few_values_are_not_written(tmp_path):
    path = write(tmp_path / "p.csv", "old")
    with pytest.raises(ValueError, match="zip"):
        write_predictions(path, "Predicted_Sentiment", ["a1", "b2"], [3])
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["p.csv"]


SONNETS = [
    poem(155, "Two loves I have", "“Of comfort”", "  and 14 despair"),
    poem(7, "One line"),
    poem(8, "Ünicode ç —", "end."),
]


def test_sonnets_come_back_from_their_file(tmp_path):
    path = tmp_path / "generated.txt"
    write_sonnets(path, SONNETS)
    assert read_sonnets(path) == SONNETS
    assert path.read_text(encoding="utf-8").split("\n")[0] == "--Generated Sonnets--"
    assert path.read_bytes().startswith(b"--Generated Sonnets--\n\n\n155\nTwo loves I have\n")


@pytest.mark.parametrize(
    "text", ["a rose\n12\nis red", "a rose\n\n 7\nis red", "a rose\n155", "1\na rose"]
)
def test_a_generated_line_that_is_only_a_number_does_not_become_a_sonnet(tmp_path, text):
    """Else the file has more sonnets than prompts, and the whole of it cannot be scored."""
    write_sonnets(tmp_path / "g.txt", [poem(1, text), poem(2, "so long")])
    assert [record.sent_id for record in read_sonnets(tmp_path / "g.txt")] == ["1", "2"]


def course_reader(path) -> list[str]:
    """How the course reads generated sonnets: the oracle."""
    text = path.read_text(encoding="utf-8")
    return [part.strip() for part in re.split(r"\n\s*\d+\s*\n", text)[1:]]


ODD = [
    "12",
    "\xa07",
    "7\u2009",
    "\x0b3",
    "٣",
    "２",
    "²",
    "\u200b9",
    "9.",
    "I",
    "II",
    "Sonnet 2",
    "iv)",
]
ODD += ["", "  ", "\t5\t", "\r6\r", "8\x0c", "\u20284", "\x1f1", "- 2 -", "1,", "I love", "\ufeff"]


def test_both_readers_read_the_same_sonnets_back_whatever_their_lines(tmp_path):
    draw, path = random.Random(0), tmp_path / "g.txt"
    for _ in range(500):
        lines = [draw.choices([*ODD, "a rose", " is red "], k=draw.randint(1, 8)) for _ in range(4)]
        sonnets = [poem(n, *ls, draw.choice(["end", "12"])) for n, ls in enumerate(lines, 1)]
        write_sonnets(path, sonnets)
        found = read_sonnets(path)
        assert [record.sent_id for record in found] == ["1", "2", "3", "4"]
        assert [record.text for record in found] == course_reader(path)
        for sonnet, record in zip(sonnets, found, strict=True):
            text = re.sub(r"^(\s*\ufeff\s*\n)+", "", sonnet.text).strip()
            written = [line.rstrip() for line in verses(text)]
            for line, read in zip(written, verses(record.text), strict=True):
                odd = re.search(r"\d|^\W*I+\W*$|^iv", line)
                assert read == line or (odd and read == f"{line},")


def test_verses_that_no_reader_takes_for_a_heading_are_written_as_they_are(tmp_path):
    sonnets = [poem(155, "a rose", "I", "Sonnet 2", "is red"), poem(156, "II", "so long")]
    write_sonnets(tmp_path / "g.txt", sonnets)
    assert read_sonnets(tmp_path / "g.txt") == sonnets


# -- chrF --------------------------------------------------------------------------------------

GOLD = [
    poem(i, *(f"{word} line {line} of {i}" for line in ("one", "two", "three", "four", "five")))
    for i, word in ((1, "roses"), (2, "winter"))
]
PROMPTS = [poem(g.sent_id, *g.text.split("\n")[:3]) for g in GOLD]


def test_test_sonnet_is_sacrebleu_s_chrf_of_whole_texts(tmp_path):
    from sacrebleu.metrics import CHRF

    generated = [
        poem(1, GOLD[0].text, "and my own words"),
        poem(2, "winter line one of 2", "is cold"),
    ]
    write_sonnets(tmp_path / "g.txt", generated)
    write(tmp_path / "t.txt", "".join(f"\n{g.sent_id}\n\n{g.text}\n\n" for g in GOLD))
    score = evaluation.test_sonnet(tmp_path / "g.txt", tmp_path / "t.txt")
    texts = [g.text for g in generated], [[g.text for g in GOLD]]
    assert score == pytest.approx(CHRF().corpus_score(*texts).score)
    assert 5 < score < 95
    same = evaluation.test_sonnet(test_path=tmp_path / "t.txt", gold_path=tmp_path / "t.txt")
    assert same == pytest.approx(100)


def test_test_sonnet_names_the_file_that_has_fewer_sonnets(tmp_path):
    write_sonnets(tmp_path / "g.txt", GOLD[:1])
    write_sonnets(tmp_path / "t.txt", GOLD)
    with pytest.raises(InputError, match=r"t\.txt: sonnet 2 without a partner: .*g\.txt"):
        evaluation.test_sonnet(tmp_path / "g.txt", tmp_path / "t.txt")


def test_sonnets_are_paired_by_their_opening_lines_whatever_their_order_and_numbers(tmp_path):
    generated = [poem(g.sent_id, *g.text.split("\n")[:4], f"own {g.sent_id}") for g in GOLD]
    write_sonnets(tmp_path / "g.txt", generated)
    write_sonnets(tmp_path / "t.txt", GOLD)
    score = evaluation.test_sonnet(tmp_path / "g.txt", tmp_path / "t.txt")
    shouted = [
        poem(7, GOLD[1].text.replace("winter line", "  WINTER, Line")),
        poem(8, GOLD[0].text),
    ]
    assert partners(generated, shouted, "g.txt", "t.txt") == shouted[::-1]
    write_sonnets(tmp_path / "t.txt", GOLD[::-1])
    assert evaluation.test_sonnet(tmp_path / "g.txt", tmp_path / "t.txt") == score > 50


def test_sonnets_without_a_partner_are_named(tmp_path):
    """The held-out sonnets against dev's gold: as many, but others."""
    others = [GOLD[1], poem(9, "summer days", "are", "long"), poem(11, "night", "is", "here")]
    gold = [*GOLD, poem(3, "spring", "is", "here")]
    with pytest.raises(
        InputError, match=r"^g\.txt: sonnet 9, 11 without a partner: .* in t\.txt: "
    ):
        partners(others, gold, "g.txt", "t.txt")


def test_partners_that_are_not_certain_are_an_error():
    """Two sonnets open with the one line that was given."""
    twins = [poem(1, "a rose", "is red", "I say"), poem(2, "a rose", "is blue", "I say")]
    with pytest.raises(InputError, match=r"^g\.txt: sonnet 5 without a partner"):
        partners([poem(5, "a rose", "my own")], twins, "g.txt", "t.txt")
    given_more = [poem(5, "a rose", "my own"), poem(6, "a rose", "is red", "I say", "my own")]
    assert partners(given_more, twins, "g.txt", "t.txt") == twins[::-1]


def test_letters_of_any_alphabet_tell_openings_apart():
    sonnets = [poem(1, "роза", "красна", "да"), poem(2, "зима", "холодна", "да")]
    assert partners(sonnets, sonnets[::-1], "g.txt", "t.txt") == sonnets


@needs_course_data
def test_the_course_s_dev_prompts_and_sonnets_are_paired_in_any_order():
    prompts, gold = (
        read_sonnets(COURSE_DATA / f"{name}.txt")
        for name in ("sonnets_held_out_dev", "TRUE_sonnets_held_out_dev")
    )
    assert partners(prompts, gold[::-1], "p.txt", "t.txt") == gold
    assert partners(gold, prompts[::-1], "t.txt", "p.txt") == prompts
    test_prompts = read_sonnets(COURSE_DATA / "sonnets_held_out.txt")
    with pytest.raises(InputError, match=r"p\.txt: sonnet 145, 146"):
        partners(test_prompts, gold, "p.txt", "t.txt")


def test_test_sonnet_does_not_take_a_gold_file_that_is_not_there(tmp_path):
    write_sonnets(tmp_path / "g.txt", GOLD)
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        evaluation.test_sonnet(tmp_path / "g.txt", tmp_path / "nowhere.txt")


def test_chrf_of_the_continuation_ignores_the_prompt():
    """Who only repeats the prompt has a good chrF of the whole, and next to none of what counts."""
    repeated = sonnet_report(PROMPTS, GOLD)
    assert repeated["chrf"] > 40 and repeated["chrf_continuation"] < 1
    other_prompt = [poem(1, "x", "y", "z", *GOLD[0].text.split("\n")[3:]), GOLD[1]]
    assert sonnet_report(other_prompt, GOLD)["chrf_continuation"] == pytest.approx(100)
    assert sonnet_report(GOLD, GOLD)["chrf"] == pytest.approx(100)


def test_the_continuation_leaves_blank_lines_out():
    text = "a\n\nb\n  \nc\n\nd\ne\n\n"
    assert continuation(Record("1", text)) == Record("1", "d\ne")
    assert continuation(Record("1", "a\nb")) == Record("1", "")


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_the_continuation_is_what_follows_the_prompt_that_was_given(lines):
    """Of one line or two: the next ones are the model's own."""
    prompts = [poem(g.sent_id, *g.text.split("\n")[:lines]) for g in GOLD]
    own = [poem(p.sent_id, p.text, "my love", "is blind", "to day") for p in prompts]
    report = sonnet_report(own, GOLD, prompts)
    added = [poem(0, "my love", "is blind", "to day") for _ in GOLD]
    rest = [poem(0, *g.text.split("\n")[lines:]) for g in GOLD]
    assert report["chrf_continuation"] == chrf(list(zip(added, rest, strict=True)))
    assert report["distinct_1"] == 6 / 12


def test_the_given_lines_are_the_first_ones_that_are_not_blank():
    text = "a\n\nb\n  \n  c\nd"
    assert prompt_text(Record("1", text)) == "a\nb\n  c\n"
    assert opening(Record("1", text)) == "abc"


def test_empty_generations_are_scored_as_nothing():
    empty = [poem(1, ""), poem(2, "")]
    report = sonnet_report(empty, GOLD)
    assert report["chrf"] == report["chrf_continuation"] == report["lines_mean"] == 0
    assert report["distinct_1"] == report["distinct_2"] == 0
    assert all(math.isfinite(value) for value in report.values())
    assert chrf([(empty[0], empty[1])]) is not None


def test_reports_of_unlike_numbers_are_refused():
    with pytest.raises((InputError, ValueError)):
        sonnet_report(GOLD[:1], GOLD)


# -- form --------------------------------------------------------------------------------------


def test_distinct_n_by_hand():
    sonnets = [poem(1, "the rose the", "Rose"), poem(2, "the sun")]
    assert distinct_n(sonnets, 1) == 3 / 6  # the rose sun
    # the-rose, rose-the, the-rose | the-sun: none across sonnets
    assert distinct_n(sonnets, 2) == 3 / 4
    assert distinct_n(sonnets, 4) == 1.0
    assert distinct_n(sonnets, 5) == 0.0


def test_lines_a_sonnet_by_hand():
    long = poem(1, *["a"] * 7, "", *["b"] * 7)
    short = poem(2, "a", "  ", "b")
    report = sonnet_report([long, short], [long, short])
    assert (report["lines_mean"], report["lines_14_share"]) == (8.0, 0.5)


def test_the_null_baseline_completes_prompts_with_lines_of_training_sonnets():
    training = [poem(i, *(f"line {i}.{n}" for n in range(14))) for i in range(3)]
    null = null_baseline(GOLD, training, where="t.txt")
    assert null == null_baseline(GOLD, training, where="t.txt")
    assert null != null_baseline(GOLD, training, where="t.txt", seed=1)
    for sonnet, gold in zip(null, GOLD, strict=True):
        lines = sonnet.text.split("\n")
        assert len(lines) == 14 and sonnet.sent_id == gold.sent_id
        assert lines[:3] == gold.text.split("\n")[:3]
        known = [line for record in training for line in record.text.split("\n")]
        assert set(lines[3:]) <= set(known) and len(set(lines[3:])) == 11
    assert "four" not in null[0].text  # nothing of the answer


def test_training_sonnets_with_too_few_lines_for_the_null_baseline_are_an_error():
    training, prompts = [poem(1, *"abcdefghijk")], [poem(1, "a\n\nb\nc")]
    [null] = null_baseline(prompts, training, where="t.txt")
    assert sorted(null.text.split("\n")[3:]) == list("abcdefghijk")
    with pytest.raises(InputError, match=r"^t\.txt: 11 lines in all, expected at least 12"):
        null_baseline([poem(1, "a\nb")], training, where="t.txt")


# -- perplexity --------------------------------------------------------------------------------


def sequences(batch_size: int):
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(250, (n,), generator=draw).tolist() for n in (5, 17, 9, 2, 11)]
    labels = [next_token_labels(row) for row in rows]
    dataset = TokenDataset(rows, [str(i) for i in range(len(rows))], labels)
    return rows, make_loader(dataset, batch_size)


def sum_loss(logits, batch):
    return next_token_loss(logits, batch["labels"], reduction="sum")


class LanguageModel(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.gpt = GPT2Model.from_pretrained(str(folder))

    def forward(self, input_ids, attention_mask):
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        return self.gpt.hidden_state_to_token(hidden_states)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_cross_entropy_is_huggingface_s_and_padding_does_not_count(dropout_folder, batch_size):
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(dropout_folder).eval()
    rows, loader = sequences(batch_size)
    total = 0.0
    for row in rows:  # one by one: no padding at all
        with torch.no_grad():
            loss = theirs(torch.tensor([row]), labels=torch.tensor([row])).loss
        total += float(loss) * (len(row) - 1)
    model = LanguageModel(dropout_folder).train()
    expected = total / sum(len(row) - 1 for row in rows)
    assert cross_entropy(model, loader, sum_loss, CPU) == pytest.approx(expected, rel=1e-5)


def test_the_cross_entropy_of_a_model_that_knows_nothing_is_log_v():
    _, loader = sequences(2)
    loss = cross_entropy(
        nn.Module(),
        loader,
        sum_loss,
        CPU,
        forward=lambda _, b: torch.zeros(*b["token_ids"].shape, 300),
    )
    assert math.exp(loss) == pytest.approx(300, rel=1e-5)


# -- table and program -------------------------------------------------------------------------


def test_the_table_has_a_line_a_system_and_its_columns_in_line():
    rows = {"a": {"chrf": 41.5, "lines": 14.0}, "random lines": {"chrf": 0.25, "lines": 13.5}}
    header, first, second = report_table(rows).split("\n")
    assert header.split() == ["chrf", "lines"]
    assert first.split() == ["a", "41.500", "14.000"]
    assert second.split() == ["random", "lines", "0.250", "13.500"]
    assert len(first) == len(second)


@pytest.fixture
def sonnet_files(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write(tmp_path / "gold.txt", sonnets_text([132, 133], seed=1))
    write(tmp_path / "train.txt", sonnets_text(range(1, 5)))
    gold = read_sonnets(tmp_path / "gold.txt")
    write_sonnets(tmp_path / "g.txt", [poem(g.sent_id, g.text[:150]) for g in gold])
    return ["--sonnets", "g.txt", "--gold", "gold.txt", "--training", "train.txt"]


def test_the_program_prints_the_table(sonnet_files, tmp_path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "evaluation.py"), *sonnet_files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    header, ours, null, after = run.stdout.splitlines()
    report = sonnet_report(read_sonnets(tmp_path / "g.txt"), read_sonnets(tmp_path / "gold.txt"))
    assert header.split() == list(report)
    assert ours.split() == ["g.txt", *(f"{value:.3f}" for value in report.values())]
    assert null.startswith("random lines") and float(null.split()[4]) == 14.0
    assert after.startswith("next: python prepare_submit.py")


def test_the_program_refuses_files_of_unlike_numbers(sonnet_files, tmp_path, monkeypatch, capsys):
    write(tmp_path / "gold.txt", sonnets_text([132], seed=1))
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "evaluation", *sonnet_files)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: g.txt: sonnet 133 without a partner")


def test_the_program_s_prompts_say_what_was_given(sonnet_files, monkeypatch, capsys):
    """Of one line each, and all files in orders of their own."""
    gold = [poem(g.sent_id, f"only {g.sent_id}", g.text) for g in read_sonnets("gold.txt")]
    write_sonnets("gold.txt", gold)
    prompts = [poem(g.sent_id, g.text.split("\n")[0]) for g in gold]
    own = [poem(p.sent_id, p.text, "one of mine", "and two", "and three") for p in prompts]
    write_sonnets("g.txt", own[::-1])
    write_sonnets("prompts.txt", prompts)
    call_main(monkeypatch, "evaluation", *sonnet_files, "--prompts", "prompts.txt")
    _, ours, null, _ = capsys.readouterr().out.splitlines()
    report = sonnet_report(own[::-1], gold[::-1], prompts)
    assert ours.split() == ["g.txt", *(f"{value:.3f}" for value in report.values())]
    assert ours.split()[2] != f"{sonnet_report(own, gold)['chrf_continuation']:.3f}"
    assert float(null.split()[4]) == 14.0
