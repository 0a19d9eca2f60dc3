"""Augmentation: new rows are what their names say, old ones stay, nothing of dev or test leaks."""

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from course_files import call_main, work_in, write, write_course, write_model

from engine.records import PairRecord, Record, read_pairs, read_sentiment
from programs.augment import augment
from programs.augment.leak_check import HeldOut
from programs.augment.text import (
    EDA,
    Neighbors,
    deletion,
    hard_negatives,
    insertion,
    overlap,
    positive_pmi,
    replacement,
    swap,
    symmetric,
)

WORDS = [f"w{i}" for i in range(20)]


def nothing(word):
    return []


# -- one row ---------------------------------------------------------------------------------------


def test_deletion_takes_each_word_with_probability_alpha_and_leaves_one():
    draw = random.Random(0)
    kept = [deletion(WORDS, 0.3, draw, nothing) for _ in range(400)]
    assert np.mean([len(words) for words in kept]) == pytest.approx(14, abs=0.3)
    assert all([word for word in WORDS if word in words] == words for words in kept)  # in order
    gone = Counter(word for words in kept for word in set(WORDS) - set(words))
    assert min(gone.values()) > 80 and max(gone.values()) < 160
    assert {len(deletion(WORDS, 1.0, draw, nothing)) for _ in range(20)} == {1}


def test_swaps_keep_the_words_and_move_few():
    draw = random.Random(0)
    for _ in range(50):
        found = swap(WORDS, 0.1, draw, nothing)
        assert sorted(found) == sorted(WORDS)
        assert sum(a != b for a, b in zip(found, WORDS, strict=True)) <= 4  # two swaps
    assert swap(["one"], 0.1, draw, nothing) == ["one"]


def test_insertion_and_replacement_change_as_many_words_as_alpha_says():
    draw = random.Random(0)

    def similar(word):
        return [word.upper()] if int(word[1:]) >= 10 else []

    longer = insertion(WORDS, 0.15, draw, similar)
    new = [word for word in longer if word.isupper()]
    assert len(new) == 3 and [word for word in longer if word.islower()] == WORDS
    other = replacement(WORDS, 0.15, draw, similar)
    changed = [(a, b) for a, b in zip(WORDS, other, strict=True) if a != b]
    assert len(changed) == 3 and all(b == a.upper() and int(a[1:]) >= 10 for a, b in changed)
    for change in (insertion, replacement):
        assert change(WORDS, 0.5, draw, nothing) == WORDS


def test_no_change_touches_the_words_that_it_is_given():
    before = list(WORDS)
    for change in EDA.values():
        change(before, 0.5, random.Random(0), lambda word: ["x"])
    assert before == WORDS


# -- neighbors ------------------------------------------------------------------------------------


def test_positive_pmi_is_the_formula_s():
    counts = np.array([[0, 6, 2], [6, 0, 0], [2, 0, 4]], dtype=float)
    found = positive_pmi(counts)
    p = counts / counts.sum()
    assert found[0, 1] == pytest.approx(np.log(p[0, 1] / (p[0].sum() * p[:, 1].sum())))
    assert found[0, 0] == found[1, 2] == 0 and found.min() == 0
    assert not positive_pmi(np.zeros((2, 2))).any()


@pytest.fixture(scope="module")
def neighbors():
    """Good and fine, bad and poor stand in the same places; labels tell the two kinds apart."""
    draw = random.Random(0)
    fillers = [f"filler{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    rows = []
    for i in range(600):
        label = i % 2
        word = draw.choice([("bad", "poor"), ("good", "fine")][label])
        noise = [draw.choice(fillers) for _ in range(6)]
        rows.append(
            Record(str(i), " ".join([*noise[:3], f"truly {word} acting", *noise[3:]]), label)
        )
    stop = [Record("stop", " ".join(fillers * 200), 0)]  # the fillers are the frequent words
    return Neighbors(rows + stop)


def test_neighbors_stand_in_the_same_places_and_speak_for_the_same_label(neighbors):
    assert neighbors.of("good", 1) == ["fine"] and neighbors.of("poor", 0) == ["bad"]
    near = {neighbors.words[i] for i in neighbors.nearest[neighbors.index["good"]]}
    assert {"fine", "bad", "poor"} <= near  # opposites are near, and are not taken
    assert set(neighbors.of("good", 0)) >= {"bad", "poor"}  # where the row is a negative one


def test_frequent_and_unknown_words_have_no_neighbors(neighbors):
    assert neighbors.of("unheard", 1) == []
    frequent = next(iter(neighbors.stop_words & neighbors.index.keys()))
    assert neighbors.of(frequent, 1) == []
    everyone = {
        word for label in (0, 1) for w in neighbors.words for word in neighbors.of(w, label)
    }
    assert not everyone & neighbors.stop_words


# -- pairs -----------------------------------------------------------------------------------------


def test_symmetric_pairs_are_the_pairs_turned_round():
    pair = PairRecord("1", "how ?", "why ?", 1)
    assert symmetric([pair]) == [PairRecord("1", "why ?", "how ?", 1)]
    assert symmetric(symmetric([pair])) == [pair]


def test_the_hardest_negatives_share_the_most_words():
    texts = {
        "a": "is it red ?",
        "b": "is it blue ?",
        "c": "who knows ?",
        "d": "is it red or blue ?",
    }
    pairs = [PairRecord(i, "is it red ?", text, int(i == "a")) for i, text in texts.items()]
    assert [overlap(pair) for pair in pairs] == [1, 2 / 4, 0, 3 / 5]
    assert [pair.sent_id for pair in hard_negatives(pairs, 0.67)] == ["d", "b"]
    assert hard_negatives(pairs, 0.0) == []


# -- leaks -----------------------------------------------------------------------------------------

HELD = Record("h", "The quick, brown fox jumps over the lazy dog.")


def held(*records, n: int = 4, training=()) -> HeldOut:
    found = HeldOut(n)
    found.add(records, "dev.csv")
    found.forget(training)
    return found


@pytest.mark.parametrize(
    "text, leaks",
    [
        ("a quick brown FOX jumps high", True),
        ("quick brown fox: jumps", True),
        ("quick brown fox leaps over the lazy cat", False),
        ("over the lazy", False),
        ("", False),
    ],
)
def test_n_words_running_leak_whatever_their_case_and_punctuation(text, leaks):
    assert bool(held(HELD).leak(Record("x", text))) == leaks


def test_a_short_text_leaks_whole_only():
    short = held(Record("h", "a fine film"))
    assert short.leak(Record("x", "A fine film .")) == "“a fine film” (dev.csv)"
    assert short.leak(Record("x", "a fine film indeed")) is None


def test_what_training_says_anyway_is_no_leak():
    training = [Record("t", "see the quick brown fox jumps")]
    found = held(HELD, training=training)
    assert found.leak(Record("x", "quick brown fox jumps")) is None
    assert found.leak(Record("x", "brown fox jumps over")) is not None
    pieces = [Record("t", "a very good film"), Record("t", "very good film indeed")]
    whole = held(Record("h", "a very good film indeed"), training=pieces)
    assert whole.leak(Record("x", "A very good film, indeed!")) is not None
    assert whole.leak(Record("x", "such a very good film")) is None


def test_a_held_out_pair_leaks_in_either_order_though_its_questions_are_known():
    known = [PairRecord("t1", "how ?", "who ?"), PairRecord("t2", "why ?", "who ?")]
    found = held(PairRecord("h", "how ?", "why ?"), training=known)
    assert found.leak(PairRecord("x", "Why?", "How?")) is not None
    assert found.leak(PairRecord("x", "why ?", "who ?")) is None


def test_a_plain_text_leaks_across_lines_and_names_the_lines():
    text = "a\nfine words here\nbrown fox\njumps over\n\nthe end of\nthe lazy dog\nsat\n"
    assert list(held(HELD).leaks_of_text(text)) == [3]
    assert list(held(HELD, n=3).leaks_of_text(text)) == [3, 4, 7]  # 4: "jumps over the"
    short = held(Record("h", "fine words here brown"), n=8)
    assert list(short.leaks_of_text(text)) == [2]
    assert held(Record("h", "the end"), n=8).leaks_of_text(text) == {}  # anybody's words


# -- programs --------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=80)
    return tmp_path


def run(monkeypatch, capsys, *words) -> str:
    monkeypatch.setattr(sys, "argv", ["augment", *map(str, words)])
    augment.main()
    return capsys.readouterr().out


def test_old_rows_stay_and_new_ones_follow_with_ids_of_their_own(place, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in Path("data").iterdir()}
    words = ["--task", "sst", "--methods", *EDA, "--copies", "2", "--ngram", "50"]
    said = run(monkeypatch, capsys, *words, "--out_dir", "new")
    old = read_sentiment("data/ids-sst-train.csv", 5)
    rows = read_sentiment("new/ids-sst-train.csv", 5)
    assert rows[: len(old)] == old and len(rows) > 2 * len(old)
    origin = {record.sent_id: record for record in old}
    for row in rows[len(old) :]:
        source, method = row.sent_id.rsplit("-", 1)
        assert method[:-1] in EDA and row.label == origin[source].label
        assert row.text != origin[source].text
    assert len({row.text for row in rows}) == len({r.text for r in old}) + len(rows) - len(old)
    assert {path: path.read_bytes() for path in Path("data").iterdir()} == before
    for name in ("ids-sst-dev.csv", "ids-sst-test-student.csv"):
        assert Path(f"new/{name}").read_bytes() == Path(f"data/{name}").read_bytes()
    assert f"{len(rows):,} rows, {len(old):,} of them as before" in said
    assert said.splitlines()[-1].startswith("next: python classifier.py --dataset sst --data_dir")


def test_the_seed_decides_the_rows(place, monkeypatch, capsys):
    words = ["--task", "cfimdb", "--methods", "swap", "replacement", "--out_dir"]
    texts = []
    for seed, folder in ((1, "a"), (1, "b"), (2, "c")):
        run(monkeypatch, capsys, *words, folder, "--seed", seed)
        texts.append(Path(f"{folder}/ids-cfimdb-train.csv").read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_pairs_are_turned_round_and_hard_ones_come_again(place, monkeypatch, capsys):
    methods = ["symmetric", "hard_negatives"]
    words = ["--task", "paraphrase", "--methods", *methods, "--share", "0.5", "--out_dir", "new"]
    run(monkeypatch, capsys, *words)
    old = read_pairs("data/quora-train.csv", labelled=True).records
    rows = read_pairs("new/quora-train.csv", labelled=True).records
    assert rows[: len(old)] == old
    kinds = Counter(row.sent_id.rsplit("-", 1)[-1] for row in rows[len(old) :])
    assert kinds["hard_negatives1"] == round(0.5 * sum(pair.label == 0 for pair in old))
    questions = {(pair.sentence1, pair.sentence2): pair.label for pair in rows}
    assert all(questions[b, a] == label for (a, b), label in list(questions.items()))


@pytest.mark.parametrize(
    "task, program, words",
    [
        ("sst", "classifier", ["--dataset", "sst"]),
        ("paraphrase", "paraphrase_detection", []),
    ],
)
def test_the_task_trains_on_the_folder(task, program, words, place, monkeypatch, capsys):
    write_model("model")
    run(monkeypatch, capsys, "--task", task, "--methods", "deletion", "--out_dir", "new")
    flags = ["--data_dir", "new", "--model_size", "model", "--epochs", "1"]
    call_main(monkeypatch, program, *words, *flags)


def test_a_made_row_that_stands_in_dev_or_test_is_left_out(place, monkeypatch, capsys):
    """Deletion of all but one word makes rows that say what a held-out one says."""
    write("data/ids-sst-test-student.csv", "\tid\tsentence\n0\tx1\tAwful !\n1\tx2\tsuperb\n")
    words = ["--task", "sst", "--methods", "deletion", "--alpha", "1", "--copies", "30"]
    said = run(monkeypatch, capsys, *words, "--out_dir", "new")
    texts = {record.text for record in read_sentiment("new/ids-sst-train.csv", 5)}
    assert not texts & {"awful", "superb"} and texts >= {"poor", "plain", "good"}
    assert "that stand in dev or test" in said and " 0 that stand" not in said


def test_rows_from_elsewhere_join_if_they_are_clean(place, monkeypatch, capsys):
    text = (
        "\tid\tsentence\tsentiment\n0\tNew\tan entirely new sentence\t3\n1\tS0x0\t\"so 'so'\"\t2\n"
    )
    write("more.csv", text)
    run(monkeypatch, capsys, "--task", "sst", "--extra", "more.csv", "--out_dir", "new")
    rows = read_sentiment("new/ids-sst-train.csv", 5)
    assert rows[-2:] == [
        Record("extra-new", "an entirely new sentence", 3),
        Record("extra-s0x0", "so 'so'", 2),
    ]


@pytest.mark.parametrize("split", ["dev", "test-student"])
def test_rows_from_elsewhere_that_leak_are_refused_with_their_lines(
    split, place, monkeypatch, capsys, refused
):
    """A file in which a cell has two lines: the numbers are those of an editor."""
    draw = read_sentiment(f"data/ids-sst-{split}.csv", 5 if split == "dev" else None)
    training = {record.text for record in read_sentiment("data/ids-sst-train.csv", 5)}
    stolen = next(r.text for r in draw if r.text not in training and len(r.text.split()) > 4)
    rows = ['0\ta\t"two\nlines"\t1', f"1\tb\t{stolen}\t2", "2\tc\tclean\t0", f"3\td\t{stolen}\t1"]
    write("more.csv", "\n".join(["\tid\tsentence\tsentiment", *rows]))
    words = ["--task", "sst", "--extra", "more.csv", "--out_dir", "new", "--ngram", "4"]
    with refused("more.csv, line 4, 6: 4 words running, or a whole text"):
        run(monkeypatch, capsys, *words)
    assert not Path("new/ids-sst-train.csv").exists()


def test_a_plain_text_is_checked_against_the_sonnets(place, monkeypatch, capsys, refused):
    for name in ("sonnets_held_out.txt", "TRUE_sonnets_held_out_dev.txt"):
        path = Path(f"data/{name}")
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n\n999\n\nIt was the best of times\nit was the worst\n", "utf-8")
        write("more.txt", "ours\nIt was the best -\nof times! It was\nnothing")
        words = ["--task", "sonnet", "--check", "more.txt"]
        with refused("more.txt, line 2: 8 words running"):
            run(monkeypatch, capsys, *words)
        path.write_text(text, "utf-8")
        assert "more.txt: no 8 words running" in run(monkeypatch, capsys, *words)
    Path("data/TRUE_sonnets_held_out_dev.txt").unlink()
    run(monkeypatch, capsys, *words)


SST = ["--task", "sst"]


@pytest.mark.parametrize(
    "words, said",
    [
        (SST, "expected --check FILE, or --methods or --extra with --out_dir DIR"),
        ([*SST, "--methods", "swap"], "expected --check FILE"),
        ([*SST, "--methods", "swap", "--out_dir", "new", "--check", "x"], "expected --check FILE"),
        ([*SST, "--methods", "swap", "--out_dir", "./data"], "the data's own folder"),
        ([*SST, "--methods", "symmetric", "--out_dir", "new"], "--methods symmetric: not for sst"),
        (["--task", "paraphrase", "--methods", "insertion", "--out_dir", "new"], "not for paraph"),
        (["--task", "sonnet", "--extra", "x", "--out_dir", "new"], "--extra: not for sonnets"),
        ([*SST, "--methods", "swap", "--out_dir", "new", "--alpha", "2"], "--alpha 2.0: expected"),
        ([*SST, "--check", "none.txt"], "none.txt: no such file"),
        ([*SST, "--check", "x", "--ngram", "0"], "--ngram 0: expected at least 1"),
        (
            [*SST, "--methods", "swap", "--out_dir", "new", "--data_dir", "away"],
            "ids-sst-train.csv",
        ),
    ],
)
def test_calls_that_make_no_sense_are_refused(words, said, place, monkeypatch, capsys, refused):
    with refused(said):
        run(monkeypatch, capsys, *words)
    assert not Path("new/ids-sst-train.csv").exists()
