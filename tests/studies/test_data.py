"""Studies train on the same rows, drawn from all of a file, and see no test rows."""

import pytest

pytest.importorskip("programs.ensemble.ensemble", reason="no programs/ here")

from engine.files import ROOT
from engine.records import read_pairs, read_sentiment, read_sonnets
from studies import data as rows

SAMPLE = ROOT / "data" / "sample"


def test_samples_are_drawn_from_all_of_a_file_and_dev_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(rows.ROWS[rows.SMALL], "ids-sst-train.csv", 30)
    rows.prepare(SAMPLE, tmp_path)
    everything = read_sentiment(SAMPLE / "ids-sst-train.csv", 5)
    drawn = read_sentiment(tmp_path / "small" / "ids-sst-train.csv", 5)
    places = [everything.index(record) for record in drawn]
    assert len(places) == 30 and places == sorted(places) and max(places) > 220
    assert read_sentiment(tmp_path / "whole" / "ids-sst-train.csv", 5) == everything
    for folder in ("small", "whole"):
        dev = read_sentiment(tmp_path / folder / "ids-sst-dev.csv", 5)
        assert dev == read_sentiment(SAMPLE / "ids-sst-dev.csv", 5)
        pairs = read_pairs(tmp_path / folder / "quora-dev.csv", labelled=True)
        assert pairs == read_pairs(SAMPLE / "quora-dev.csv", labelled=True)
    before = (tmp_path / "small" / "ids-sst-train.csv").read_bytes()
    rows.prepare(SAMPLE, tmp_path)
    assert (tmp_path / "small" / "ids-sst-train.csv").read_bytes() == before


def test_no_test_rows_are_copied(tmp_path):
    rows.prepare(SAMPLE, tmp_path)
    for folder in ("small", "whole"):
        [row] = read_sentiment(tmp_path / folder / "ids-sst-test-student.csv", None)
        [pair] = read_pairs(tmp_path / folder / "quora-test-student.csv", labelled=False).records
        assert (row.sent_id, pair.sent_id) == ("x", "x")
        assert len(read_sonnets(tmp_path / folder / "sonnets_held_out.txt")) == 1


def test_a_limit_keeps_each_prompt_with_its_sonnet(tmp_path):
    rows.prepare(SAMPLE, tmp_path, limit=2)
    folder = tmp_path / "whole"
    prompts, gold = (read_sonnets(folder / name) for name in (rows.FILES[-2], rows.GOLD))
    assert [p.sent_id for p in prompts] == [g.sent_id for g in gold] and len(gold) == 2
    assert len(read_sentiment(folder / "ids-sst-dev.csv", 5)) == 2
    assert [path.name for path in folder.iterdir()].count("sonnets.txt") == 1
