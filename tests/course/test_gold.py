"""Prediction files are scored against the answers, each independently, or refused in one line."""

import shutil

import pytest
from course_files import sentiment_text, sonnets_text, write
from sklearn.metrics import f1_score

from course import gold
from engine.errors import InputError
from engine.files import ROOT
from engine.records import read_pairs, read_sentiment

SST, PARA = "predictions/finetune-sst-dev-out.csv", "predictions/para-dev-output.csv"
SONNETS = "predictions/generated_sonnets_dev.txt"
PAIRS = "\tid\tsentence1\tsentence2\tis_duplicate\n" + "".join(
    f"{i}\tq{i}\twhy {i}?\thow {i}?\t{float(i % 2)}\n" for i in range(6)
)


@pytest.fixture
def answers(tmp_path):
    """A gold folder with the answers to dev and test, one Quora row of which is incomplete."""
    folder = tmp_path / "gold"
    for split in ("dev", "test"):
        write(folder / f"ids-sst-{split}.csv", sentiment_text(5, 10, labelled=True))
        write(folder / f"ids-cfimdb-{split}.csv", sentiment_text(2, 6, labelled=True))
        write(folder / f"quora-{split}.csv", PAIRS + "6\tq6\twhy?\t\t1.0\n")
    write(folder / "TRUE_sonnets_held_out_dev.txt", sonnets_text([1, 2]))
    write(folder / "TRUE_sonnets_held_out.txt", sonnets_text([1, 2]))
    return folder


@pytest.fixture
def submission(tmp_path, answers):
    """Right predictions for all of dev, but for one SST row in each file."""
    folder = tmp_path / "submission"
    for name, mode in (("sst", "finetune"), ("cfimdb", "finetune"), ("sst", "pretrain")):
        rows = read_sentiment(answers / f"ids-{name}-dev.csv", 5)
        labels = [row.label for row in rows]
        labels[0] = (labels[0] + 1) % 5 if name == "sst" else labels[0]
        lines = [f"{row.sent_id}, {label}" for row, label in zip(rows, labels, strict=True)]
        path = folder / f"predictions/{mode}-{name}-dev-out.csv"
        write(path, "\n".join(["id, Predicted_Sentiment", *lines, ""]))
    pairs = read_pairs(answers / "quora-dev.csv", labelled=True).records
    lines = [f"{pair.sent_id}, {(3919, 8505)[pair.label]}" for pair in pairs]
    write(folder / PARA, "\n".join(["id, Predicted_Is_Paraphrase", *lines, ""]))
    poems = (answers / "TRUE_sonnets_held_out_dev.txt").read_text(encoding="utf-8")
    write(folder / SONNETS, "--Generated Sonnets--\n" + poems.partition("nobody")[2])
    return folder


def test_figures_are_those_of_the_metrics(submission, answers):
    found = gold.score(submission, answers, "dev")
    assert list(found) == [
        *("sonnet", "finetune-sst", "finetune-cfimdb"),
        *("pretrain-sst", "pretrain-cfimdb", "paraphrase"),
    ]
    right = [i % 5 for i in range(10)]
    f1 = f1_score(right, [1, *right[1:]], average="macro")
    assert found["finetune-sst"].figures == pytest.approx({"acc": 0.9, "f1": f1})
    assert found["finetune-cfimdb"].figures == {"acc": 1.0, "f1": 1.0}
    assert found["paraphrase"].figures == {"acc": 1.0, "f1": 1.0}
    assert found["sonnet"].figures == pytest.approx({"chrf": 100, "chrf_continuation": 100})
    assert "pretrain-cfimdb-dev-out.csv" in found["pretrain-cfimdb"].problem  # was left out
    assert (
        "last-linear-layer-cfimdb-dev-out.csv: the file is missing"
        in found["pretrain-cfimdb"].problem
    )


def test_the_other_years_names_are_found(submission, answers):
    (submission / SST).rename(submission / SST.replace("finetune", "full-model"))
    found = gold.score(submission, answers, "dev")["finetune-sst"]
    assert found.figures["acc"] == 0.9 and found.path == SST.replace("finetune", "full-model")


def test_test_files_are_scored_by_the_files_of_their_split(submission, answers):
    shutil.copy(submission / PARA, submission / PARA.replace("dev", "test"))
    found = gold.score(submission, answers, "test")
    assert found["paraphrase"].figures == {"acc": 1.0, "f1": 1.0}
    assert found["sonnet"].problem.startswith("predictions/generated_sonnets.txt: the file is miss")


def test_an_incomplete_row_may_be_predicted_and_counts_nothing(submission, answers):
    with open(submission / PARA, "a", encoding="utf-8") as file:
        file.write("q6, 3919\n")
    assert gold.score(submission, answers, "dev")["paraphrase"].figures["acc"] == 1.0


def replaced(old: str, new: str):
    def change(path):
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


DEFECTS = {
    "nan": (SST, replaced("s0x1, 1", "s0x1, nan"), "line 3: found the value 'nan', expected one"),
    "duplicate": (SST, replaced("s0x2, 2", "s0x1, 2"), "line 4: found id s0x1 again"),
    "missing": (SST, replaced("s0x2, 2\n", ""), "1 of the 10 ids of ids-sst-dev.csv are missing"),
    "unknown": (SST, replaced("s0x2,", "other,"), "line 4: found id other, expected an id of"),
    "formula": (SST, replaced("s0x2,", "=cmd|' /c calc'!a0,"), "expected an id of ids-sst-dev"),
    "mark": (SST, replaced("s0x2,", "\u202es0x2,"), r"line 4: found id \u202es0x2, expected an id"),
    "value's mark": (SST, replaced("s0x2, 2", "s0x2, \u202e2"), r"the value '\u202e2'"),
    "terminal": (SST, replaced("s0x2,", "\x1b[31ms,"), r"found id \x1b[31ms"),
    "html": (PARA, replaced("q1, 8505", "q1, <b>8505"), "found the value '<b>8505'"),
    "header": (PARA, replaced("Predicted_Is_Paraphrase", "x"), "line 1: found 'id, x'"),
    "class": (PARA, replaced("q1, 8505", "q1, 1"), "found the value '1', expected one of 8505"),
    "huge": (SST, lambda p: p.write_bytes(b"a, 1\n" * 10**7), "50,000,000 bytes, expected at most"),
    "empty": (SST, lambda p: p.write_bytes(b" \n"), "the file is empty"),
    "binary": (SST, lambda p: p.write_bytes(b"id\xff"), "byte 2 is not UTF-8"),
    "folder": (SST, lambda p: (p.unlink(), p.mkdir()), "the file is missing"),
    "sonnets' number": (
        SONNETS,
        lambda p: p.write_bytes(b"--Generated Sonnets--\n\n1\nx\n"),
        "ends",
    ),
    "sonnets' text": (SONNETS, replaced("\n2\n", "\n2\nwho knows\n"), "without a partner"),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_a_defective_file_is_refused_in_one_line_and_the_others_are_scored(
    submission, answers, case
):
    path, change, words = DEFECTS[case]
    before = gold.score(submission, answers, "dev")
    change(submission / path)
    after = gold.score(submission, answers, "dev")
    [name] = [name for name in after if after[name] != before[name]]
    assert before[name].path == path and after[name].figures == {}
    problem = after[name].problem
    assert problem.startswith(path) and words in problem and problem.isprintable()
    assert str(submission) not in problem


def test_answers_that_are_not_there_or_broken_are_the_staffs_matter(submission, answers, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"no answers to the dev files, expected some of TRUE_s"):
        gold.score(submission, tmp_path / "nothing", "dev")
    (answers / "quora-dev.csv").unlink()
    assert "paraphrase" not in gold.score(submission, answers, "dev")
    write(answers / "ids-sst-dev.csv", "no table\n")
    with pytest.raises(InputError, match=r"ids-sst-dev\.csv, line 1: no column"):
        gold.score(submission, answers, "dev")


COURSE = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not COURSE.is_dir(), reason="the course's files are not here")
def test_the_courses_own_dev_files_are_a_gold_folder(tmp_path):
    names = [name for name, _ in gold.scored(COURSE, "dev").items()]
    assert len(names) == 6
    found = gold.score(tmp_path, COURSE, "dev")
    assert all("the file is missing" in score.problem for score in found.values())
