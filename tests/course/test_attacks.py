"""Submissions that attack the autograder get a low score, a clear message and whole results."""

import json
import os
import pickle
import shutil
from pathlib import Path

import attacks
import pytest

from course.autograder import grade as grading
from course.autograder import sandbox
from course.autograder.checks import attention, layer
from course.autograder.results import Results
from course.autograder.rubric import read_rubric
from course.autograder.session import Limits
from engine.files import ROOT

isolated = pytest.mark.skipif(
    sandbox.degree() != "namespaces", reason="needs root and namespaces, on Linux"
)
CODE = ("config.py", "utils.py", "modules/attention.py", "modules/gpt2_layer.py")
LAYER = sum(read_rubric().points["layer"].values())


def submission(folder: Path) -> Path:
    for name in CODE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"\n{text}")


def graded(folder: Path, out: Path, limits: Limits | None = None) -> dict:
    """The results of a folder's attention and layer, as they are on disk."""
    results = Results(out, read_rubric())
    grading.grade(folder, results, gold=None, limits=limits or Limits(seconds=5))
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    monkeypatch.setattr(grading, "CHECKS", [*attention.CHECKS, *layer.CHECKS])


def lines(document: dict, section: str) -> list[dict]:
    return [test for test in document["tests"] if test["tags"] == [section]]


def test_an_honest_submission_gets_all_points(tmp_path):
    document = graded(submission(tmp_path / "s"), tmp_path / "results.json", Limits())
    points = read_rubric().points
    assert document["score"] == sum(points["attention"].values()) + LAYER, document
    assert document["extra_data"]["isolation"] == sandbox.degree()


@isolated
def test_nothing_is_read_or_changed_that_is_not_the_submissions_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "TAKEN")
    out = tmp_path / "results.json"
    secrets = [tmp_path / "gold", tmp_path / "other.zip", ROOT / "course/autograder/grade.py"]
    for path in secrets[:2]:
        path.write_text("TAKEN", encoding="utf-8")
    folder = submission(tmp_path / "s")
    constants = f"SECRETS, GRADER = {[str(path) for path in (out, *secrets)]}, {os.getpid()}"
    append(folder / "modules/attention.py", constants + attacks.ATTEMPTS)
    monkeypatch.setattr(grading, "PRINTED", 20_000)
    document = graded(folder, out)
    printed = document["extra_data"]["printed"]
    assert "TAKEN" not in printed and printed.count("refused:") == 66, printed
    assert document["score"] == sum(read_rubric().points["attention"].values()) + LAYER


def test_files_that_hide_libraries_are_not_used_and_are_told(tmp_path):
    folder = submission(tmp_path / "s")
    for name, text in attacks.MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    document = graded(folder, tmp_path / "results.json")
    assert document["score"] == sum(read_rubric().points["attention"].values()) + LAYER
    assert "torch in the submission is not used: the library is" in document["output"]
    assert "transformers in the submission is not used" in document["output"]


class Pickled:
    def __reduce__(self):
        return os._exit, (0,)


@isolated
@pytest.mark.slow
def test_a_pickle_in_a_checkpoint_is_never_opened(tmp_path):
    folder = submission(tmp_path / "s")
    (folder / "model.pt").write_bytes(pickle.dumps(Pickled()))
    (folder / "predictions").mkdir()
    (folder / "predictions" / "a.pkl").write_bytes(pickle.dumps(Pickled()))
    assert graded(folder, tmp_path / "results.json")["score"] > LAYER


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_attack_gains_nothing_and_is_told(tmp_path, name):
    attack, folder = attacks.ATTACKS[name], submission(tmp_path / "s")
    append(folder / "modules/attention.py", attack.code)
    document = graded(folder, tmp_path / "results.json")
    attacked, honest = lines(document, "attention"), lines(document, "layer")
    if attack.says is None:
        assert [test["status"] for test in attacked] == ["passed"] * len(attacked)
    else:
        graded_lines = [test for test in attacked if test["max_score"]]
        told = [t["output"] for t in graded_lines if attack.says not in t["output"]]
        assert not told and sum(test["score"] for test in attacked) == 0, told
    assert sum(test["score"] for test in honest) == (0 if attack.at_import else LAYER)
    assert all(test["output"].isprintable() for test in document["tests"])
    assert {test["output_format"] for test in document["tests"]} == {"text"}
    assert len(document["extra_data"]["printed"]) < grading.PRINTED + 100
    assert not list(Path("/tmp").glob(f"autograder-{os.getpid()}-*"))


@isolated
@pytest.mark.slow
def test_when_the_time_is_used_up_the_other_lines_say_so(tmp_path):
    folder = submission(tmp_path / "s")
    append(folder / "modules/attention.py", attacks.forward("while True: pass"))
    document = graded(folder, tmp_path / "results.json", Limits(seconds=5, total=2))
    assert document["score"] == 0
    told = [test["output"] for test in lines(document, "layer")][: len(layer.LAYER)]
    assert all("the 2 seconds for all checks are used up" in output for output in told), told
