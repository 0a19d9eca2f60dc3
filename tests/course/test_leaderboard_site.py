"""The site shows what students may see, whatever teams are called, and appears whole or not."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from boards import HOSTILE, REASON, history_of, site_of
from submissions import write_answers, write_submissions, write_zip

from course.leaderboard import __main__ as program
from course.leaderboard.aliases import pseudonym
from engine.errors import optional
from engine.files import ROOT
from programs.decoding import verse_marks


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8")
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture
def here(monkeypatch):
    """Score in this process."""

    def processes(score, count):
        return SimpleNamespace(score=score, close=lambda: None)

    monkeypatch.setattr(program, "Processes", processes)


def run(zips, gold, out, *flags):
    program.main([*map(str, [zips, "--gold", gold, "--out", out, *flags])])
    return files(out)


def test_the_same_submissions_give_the_same_site_and_staff_get_the_reasons(tmp_path, here, capsys):
    zips, gold = tmp_path / "zips", write_answers(tmp_path / "gold")
    write_submissions(zips, 4, per_team=2)
    (zips / "=broken-2026-03-01.zip").write_bytes(b"PK")
    first = run(zips, gold, tmp_path / "one")
    assert "3 teams, 5 submissions read" in capsys.readouterr().out
    assert run(zips, gold, tmp_path / "two") == first
    assert run(zips, gold, tmp_path / "one") == first
    problems = (tmp_path / "one-staff" / "problems.csv").read_text(encoding="utf-8")
    [problem] = csv.DictReader(problems.splitlines())
    assert problem["source"] == "'=broken-2026-03-01.zip" and "no whole zip" in problem["problem"]
    assert not [name for name, text in first.items() if "no whole zip" in text]
    ranking = json.loads(first["leaderboard.json"])["ranking"]
    tasks = json.loads(first["leaderboard.json"])["tasks"]
    best = {(row["split"], row["task"]) for row in ranking if row["rank"] == 1}
    assert best == {(split, task) for split in ("dev", "test") for task in tasks}
    assert len(list(csv.DictReader(first["leaderboard.csv"].splitlines()))) == len(ranking) == 28


def test_what_is_wrong_with_a_command_is_one_line(tmp_path, here, refused):
    gold = write_answers(tmp_path / "gold")
    (tmp_path / "empty").mkdir()
    with refused("no submission, expected zips or Gradescope's export"):
        run(tmp_path / "empty", gold, tmp_path / "site")
    with refused("no answers to the dev files"):
        run(tmp_path / "empty", tmp_path / "empty", tmp_path / "site")
    with refused("gold lies in it, expected a folder of its own"):
        run(gold, gold, tmp_path)


def test_no_page_holds_a_reason_a_members_address_or_a_file_name(tmp_path):
    pages = site_of(tmp_path, history_of(tmp_path, HOSTILE))
    for text in pages.values():
        assert REASON not in text and "@example.org" not in text and "zip-of-team" not in text
    assert "1 that could not be scored" in pages["index.html"]


def test_hostile_names_and_verses_are_text(tmp_path):
    pages = site_of(tmp_path, history_of(tmp_path, HOSTILE))
    for name, text in pages.items():
        if name.endswith(".html"):
            assert "<script>alert" not in text and "\u202e" not in text and "</style><" not in text
            assert text.count("<script") == (name in ("index.html", "test.html"))
    assert r"\u202egnp.exe" in pages["index.html"]
    assert len(pages["index.html"]) < 60_000  # though one name has 10,000 letters
    teams = [row["team"] for row in csv.DictReader(pages["leaderboard.csv"].splitlines())]
    assert not [team for team in teams if team.startswith(("=", "+", "-", "@"))]


def test_anonymous_pages_hold_no_name_and_keep_their_pseudonyms(tmp_path):
    names = ["Ada Lovelace", "Alan Turing"]
    history = history_of(tmp_path, names)
    pages = site_of(tmp_path, history, anonymous=True)
    assert not [page for page, text in pages.items() for name in names if name in text]
    assert pseudonym(1) in pages["index.html"] and pseudonym(2) in pages["index.html"]
    history_of(tmp_path, ["Aaron Early", *names])
    assert pseudonym(1) in site_of(tmp_path, history, anonymous=True)["teams/1.html"]
    assert len({pseudonym(team) for team in range(5000)}) == 5000


def test_a_site_that_fails_to_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    history = history_of(tmp_path, ["one"])
    before = site_of(tmp_path, history)
    history_of(tmp_path, ["one", "two"])
    with monkeypatch.context() as context:
        context.setattr("course.leaderboard.pages.write_public", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site_of(tmp_path, history)
    assert files(tmp_path / "site") == before
    assert site_of(tmp_path, history) != before


def test_a_board_without_any_score_says_so(tmp_path):
    pages = site_of(tmp_path, history_of(tmp_path, []))
    assert "No submission has been scored yet" in pages["index.html"]


POEM = "One\nTwo\nThree\nFour\nmy love is like a cat\nit sleeps\nand wears a hat\nno more"


def test_verses_are_marked_with_rhymes_and_syllables():
    pytest.importorskip("pronouncing")
    marks = verse_marks.mark(POEM + "\nx" * 30, marked=True)
    fifth = marks.verses[4]
    assert (fifth.letter, fifth.partners, fifth.syllables) == ("C", (7,), 6)
    assert [verse.given for verse in marks.verses[:4]] == [True, True, True, False]
    assert marks.verses[13].letter == "G" and marks.verses[14].letter == ""
    assert (len(marks.verses), marks.cut) == (30, 8)


def test_without_the_dictionary_sonnets_are_shown_and_the_page_says_why(
    tmp_path, monkeypatch, capsys
):
    history = history_of(tmp_path, ["one"])
    monkeypatch.setattr(verse_marks, "dictionary", lambda: optional("absent", "this"))
    pages = site_of(tmp_path, history)
    assert "When in the chronicle of wasted time" in pages["teams/1.html"]
    assert "Rhymes and syllables are not marked" in pages["sonnets.html"]
    assert "pip install" in capsys.readouterr().err


def start(zips, gold, out):
    words = ["-m", "course.leaderboard", zips, "--gold", gold, "--out", out, "--workers", "1"]
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, start_new_session=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_two_at_once_end_as_one(tmp_path, here):
    zips, gold = tmp_path / "zips", write_answers(tmp_path / "gold")
    write_submissions(zips, 12, per_team=4)
    write_zip(zips / "empty-2026-03-02.zip", {"x": ""})
    killed, wal = start(zips, gold, tmp_path / "one"), tmp_path / "one-staff" / "history.sqlite-wal"
    while not wal.exists() or wal.stat().st_size < 60_000:  # some figures are in
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "one").exists()
    both = [start(zips, gold, tmp_path / "one") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert run(zips, gold, tmp_path / "two") == files(tmp_path / "one")
