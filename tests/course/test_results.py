"""results.json in the form of Gradescope, whole at every moment; and the file of points."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from whole_submissions import course_form, grade

from course.autograder import grade as grading
from course.autograder.__main__ import main
from course.autograder.results import NOT_RUN, Results
from course.autograder.rubric import PREDICTIONS, lines, read_rubric
from engine.files import ROOT


def test_all_lines_are_there_from_the_beginning(tmp_path):
    out = tmp_path / "results.json"
    Results(out, read_rubric(), PREDICTIONS)
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["score"] == 0 and document["stdout_visibility"] == "hidden"
    assert len(document["tests"]) == sum(map(len, lines().values())) + len(PREDICTIONS)
    for number, test in enumerate(document["tests"], start=1):
        assert test["output"] == NOT_RUN and test["number"] == str(number)
        assert test["status"] == "failed" and test["max_score"] >= 0 == test["score"]
        assert test["visibility"] in ("visible", "hidden", "after_due_date", "after_published")


@pytest.mark.slow
def test_a_killed_autograder_leaves_whole_results(tmp_path):
    folder, out = course_form(tmp_path / "s"), tmp_path / "results.json"
    scratch = Path(tempfile.mkdtemp())  # where a user of any name may look for the box
    scratch.chmod(0o755)
    words = ["-m", "course.autograder", "grade", str(folder), "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(scratch)},
    )
    while not out.exists() or json.loads(out.read_text(encoding="utf-8"))["score"] < 5:
        time.sleep(0.1)
        assert started.poll() is None
    started.send_signal(signal.SIGKILL)
    started.wait()
    shutil.rmtree(scratch)
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["score"] >= 5 and len(document["tests"]) == sum(map(len, lines().values()))


def test_a_zip_that_is_refused_gets_results_that_say_why(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("../../etc/cron.d/x", "")
    document = grade(tmp_path / "s.zip", tmp_path)
    assert document["score"] == 0
    assert "s.zip, entry '../../etc/cron.d/x': leads out of the folder" in document["output"]
    assert {test["output"] for test in document["tests"]} == {"not graded: see above"}


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_is_no_zip_gets_results_that_say_so(tmp_path, content):
    (tmp_path / "s.zip").write_bytes(content)
    assert "no whole zip" in grade(tmp_path / "s.zip", tmp_path)["output"]


def test_a_folder_without_code_gets_results_that_say_so(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "link.py").symlink_to("/etc/passwd")
    assert "no Python files" in grade(tmp_path / "s", tmp_path)["output"]


def test_a_folder_that_holds_one_zip_is_unpacked_and_so_is_a_zipped_folder(tmp_path):
    folder, scratch = tmp_path / "submission", tmp_path / "scratch"
    folder.mkdir()
    with zipfile.ZipFile(folder / "mine.zip", "w") as archive:
        archive.writestr("project/config.py", "")
    root = grading.opened(folder, scratch)
    assert list(grading.code_of(root)) == ["config.py"] and root.name == "project"


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("heads = 3", "", "attention: heads too much or missing"),
        ("heads = 3", "heads = 3\nx = 1", "attention: x too much or missing"),
        ("heads = 3", "heads = -3", "attention.heads: found -3, expected a number"),
        ("heads = 3", "heads = nan", "attention.heads: found nan"),
        ("heads = 3", 'heads = "3"', "attention.heads: found '3'"),
        ("[attention]", "[attentions]", "sections: attention, attentions too much or missing"),
        ("[attention]", "attention", "Expected '='"),
        ('figure = "acc", from = 0.63', 'figure = "a", from = 0.63', "figure is 'a', expected one"),
        ("from = 0.63", "from = 0.93", "predictions.paraphrase: expected `from` below `to`"),
        ('predictions = "visible"', 'predictions = "no"', "predictions is 'no', expected one of"),
        ('predictions = "visible"', 'other = "hidden"', "visibility: other too much or missing"),
    ],
)
def test_a_wrong_file_of_points_is_refused(tmp_path, refused, old, new, words):
    text = (ROOT / "course/autograder/points.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "points.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with refused("points.toml", words):
        main(["grade", "nothing", "--points", str(tmp_path / "points.toml")])


def test_sections_are_shown_as_the_points_say(tmp_path):
    text = (ROOT / "course/autograder/points.toml").read_text(encoding="utf-8")
    text = text.replace("[visibility]\n", '[visibility]\nmodel = "hidden"\n')
    (tmp_path / "points.toml").write_text(text, encoding="utf-8")
    rubric = read_rubric(tmp_path / "points.toml")
    assert rubric.shown("model") == "hidden" and rubric.shown("adamw") == "visible"


def test_a_file_of_predictions_earns_half_for_its_form_and_the_rest_in_proportion():
    aim = read_rubric().aims["paraphrase"]
    middle = (aim.low + aim.high) / 2
    shares = [aim.share({"acc": value}) for value in (0.0, aim.low, middle, aim.high, 1.0)]
    assert shares == pytest.approx([0.5, 0.5, 0.75, 1, 1])


def test_answers_that_are_missing_are_told_before_anything_is_graded(tmp_path, refused):
    with refused("no answers to the dev files"):
        main(["grade", "nothing", "--gold", str(tmp_path), "--out", str(tmp_path / "r.json")])
    assert not (tmp_path / "r.json").exists()
