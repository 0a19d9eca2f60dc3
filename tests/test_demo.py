"""What `make demo` shows at its end: right and wrong dev texts as the trained model judges them."""

import pytest
from course_files import call_main, work_in, write_course, write_model

import demo
from engine.records import Record


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [(9, 9, "RRRWW"), (9, 1, "RRRRW"), (1, 9, "RWWWW"), (2, 0, "RR"), (0, 2, "WW")],
)
def test_three_right_and_two_wrong_are_chosen_if_there_are_as_many(right, wrong, expected):
    kinds = "W" * wrong + "R" * right
    rows = [Record(str(i), "a text", 1) for i in range(len(kinds))]
    predicted = {row.sent_id: int(kind == "R") for row, kind in zip(rows, kinds, strict=True)}
    chosen = demo.examples(rows, predicted)
    assert "".join(kinds[int(row.sent_id)] for row in chosen) == expected


def test_they_are_shown_with_gold_prediction_and_probability(tmp_path, monkeypatch, capsys):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=20)
    write_model("model")
    monkeypatch.setattr("demo.ROOT", tmp_path)
    monkeypatch.setattr("engine.files.ROOT", tmp_path)
    words = ["--dataset", "sst", "--model_size", "model", "--epochs", 1, "--runs_dir", demo.OUT]
    call_main(monkeypatch, "classifier", *words, "--dev_out", "dev.csv", "--quiet")
    capsys.readouterr()
    demo.show_examples(demo.Path("data"), tmp_path / "dev.csv")
    *shown, after = capsys.readouterr().out.strip().split("\n\n")
    assert len(shown) == 6
    for text, line in (example.splitlines() for example in shown[1:]):
        mark, said, gold = [*line.partition(" (")[0].split(": "), line.split("gold: ")[1]]
        assert text and (mark.strip() == "right") == (said == gold)
        assert 0 < float(line.split("probability ")[1].split(")")[0]) < 1
    assert after.startswith("next: python classifier.py --dataset sst --checkpoint runs/demo/sst-")
