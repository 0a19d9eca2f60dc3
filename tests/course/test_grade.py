"""Whole submissions: ours, the course's form of it, the starter, many mistakes at once."""

import ast
import re

import planted
import pytest
import starter_files
from test_gold import answers, submission  # noqa: F401  fixtures
from whole_submissions import copied, course_form, grade

from course.autograder import grade as grading
from course.autograder.rubric import read_rubric
from course.handout import starter
from course.handout.blanks import BLANKS
from engine.files import ROOT
from engine.submission_code import code_files
from prepare_submit import write_zip

CODE = sum(sum(section.values()) for section in read_rubric().points.values())
COURSES_BLANKS = {
    "modules/attention.py": ["attention"],
    "modules/gpt2_layer.py": ["add", "forward"],
    "models/gpt2.py": ["embed", "hidden_state_to_token"],
    "optimizer.py": ["step"],
    "classifier.py": ["__init__"],
    "paraphrase_detection.py": ["forward"],
    "sonnet_generation.py": ["forward"],
}


def blanked(text: str, names: list[str]) -> str:
    """The text with `raise NotImplementedError` for the bodies of these functions."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.body = ast.parse("raise NotImplementedError").body
    return ast.unparse(tree)


def outputs(document) -> dict[str, str]:
    return {test["name"].partition(":")[0]: test["output"] for test in document["tests"]}


def test_this_projects_code_gets_all_points_of_the_code(tmp_path, capsys):
    document = grade(copied(tmp_path / "s", code_files(ROOT)), tmp_path)
    assert document["score"] == CODE, [t for t in document["tests"] if t["status"] == "failed"]
    assert f"{CODE:.2f} of {CODE:.2f} points" in capsys.readouterr().err


@pytest.mark.slow
def test_the_handouts_solution_gets_all_points_of_the_code(tmp_path):
    starter.main([str(tmp_path / "starter"), "--solution"])
    document = grade(tmp_path / "starter", tmp_path)
    assert document["score"] == CODE, [t for t in document["tests"] if t["status"] == "failed"]


@pytest.mark.slow
def test_the_handouts_starter_gets_nothing_and_each_of_its_bodies_is_named(tmp_path):
    starter.main([str(tmp_path / "starter")])
    document = grade(tmp_path / "starter", tmp_path)
    assert document["score"] == 0
    told = {t["output"].split(" ")[0] for t in document["tests"] if t["max_score"]}
    named = {blank.name for blank in BLANKS if not blank.file.startswith("engine/")}
    assert told <= named and len(told) == 9


@pytest.mark.slow
def test_the_courses_own_form_gets_all_points_of_the_code(tmp_path):
    document = grade(course_form(tmp_path / "s"), tmp_path)
    assert document["score"] == CODE, [t for t in document["tests"] if t["status"] == "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("head", [starter_files.LINEAR, starter_files.DEEP], ids=["one", "two"])
@pytest.mark.parametrize(
    "answer", [starter_files.ALL_TOKENS, starter_files.OWN_HEAD], ids=["tokens", "own"]
)
def test_other_right_heads_get_all_points_too(tmp_path, head, answer, monkeypatch):
    checks = [c for c in grading.CHECKS if c.section in ("sentiment", "paraphrase")]
    monkeypatch.setattr(grading, "CHECKS", checks)
    document = grade(course_form(tmp_path / "s", head=head, answer=answer), tmp_path)
    wrong = [t for t in document["tests"] if t["tags"][0] in ("sentiment", "paraphrase")]
    assert not [test for test in wrong if test["status"] == "failed"]


@pytest.mark.slow
def test_our_own_zip_gets_all_points(tmp_path, submission, answers):  # noqa: F811
    files = {name: ROOT / name for name in code_files(ROOT)}
    files |= {p.relative_to(submission).as_posix(): p for p in submission.rglob("*.*")}
    lacking = submission / "predictions/finetune-cfimdb-dev-out.csv"
    files["predictions/pretrain-cfimdb-dev-out.csv"] = lacking
    write_zip(tmp_path / "s.zip", files)
    document = grade(tmp_path / "s.zip", tmp_path, "--gold", answers)
    most = sum(test["max_score"] for test in document["tests"])
    assert document["score"] == most, [t for t in document["tests"] if t["status"] == "failed"]
    figures = {row["name"]: row["value"] for row in document["leaderboard"]}
    assert figures["finetune-sst acc"] == 0.9 and figures["sonnet chrf"] == pytest.approx(100)
    assert {row["order"] for row in document["leaderboard"]} == {"desc"}


@pytest.mark.slow
def test_the_courses_own_starter_as_it_is_gets_nothing_and_each_blank_is_named(tmp_path):
    folder = course_form(tmp_path / "starter")
    for name, blanks in COURSES_BLANKS.items():
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(blanked(text, blanks), encoding="utf-8")
    document = grade(folder, tmp_path)
    found = outputs(document)
    assert document["score"] == 0
    for line, name in {
        "attention.scale": "CausalSelfAttention.attention",
        "attention.forward": "CausalSelfAttention.attention",
        "layer.norms": "GPT2Layer.forward",
        "layer.add": "GPT2Layer.add",
        "model.embed": "GPT2Model.embed",
        "model.logits": "GPT2Model.hidden_state_to_token",
        "adamw.bias": "AdamW.step",
        "sentiment.reads": "GPT2SentimentClassifier.__init__",
        "paraphrase.tokens": "ParaphraseGPT.forward",
        "sonnet.positions": "SonnetGPT.forward",
    }.items():
        assert re.match(rf"{name} is not implemented yet \(\S+\.py, line \d+\)$", found[line])


ONE_EACH = {mistake.line: mistake for mistake in reversed(planted.PLANTED)}


@pytest.mark.slow
def test_many_mistakes_at_once_are_all_named(tmp_path):
    """One of each line, where they do not overlap, in a process that is shut in."""
    unlike = {"attention.forward", "attention.heads", "attention.padding", "attention.dropout"}
    unlike |= {"attention.operands", "attention.softmax", "layer.residuals", "model.last_left"}
    unlike |= {"layer.parts", "layer.norms", "adamw.moments", "adamw.epsilon", "adamw.skipped"}
    unlike |= {"sentiment.raw", "sonnet.raw", "adamw.groups", "adamw.bias_off"}
    chosen = {line: mistake for line, mistake in ONE_EACH.items() if line not in unlike}
    folder = copied(tmp_path / "s", code_files(ROOT))
    for file in {mistake.file for mistake in chosen.values()}:
        here = [mistake for mistake in chosen.values() if mistake.file == file]
        (folder / file).write_text(planted.edited(file, *here), encoding="utf-8")
    found = outputs(grade(folder, tmp_path))
    for line, mistake in chosen.items():
        assert found[line].startswith(mistake.says.partition(": position")[0]), found[line]
    assert len(chosen) >= 14
