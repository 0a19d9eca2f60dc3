"""Whole submissions: ours, the course's form of it, the starter, many mistakes at once."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import planted
import pytest
import starter_files
from test_gold import answers, submission  # noqa: F401  fixtures

from course.autograder import grade as grading
from course.autograder import sandbox
from course.autograder.__main__ import main
from course.autograder.results import NOT_RUN, Results
from course.autograder.rubric import PREDICTIONS, lines, read_rubric
from engine.files import ROOT
from engine.submission_code import code_files
from prepare_submit import write_zip

CODE = sum(sum(section.values()) for section in read_rubric().points.values())
BLANKS = {
    "modules/attention.py": ["attention"],
    "modules/gpt2_layer.py": ["add", "forward"],
    "models/gpt2.py": ["embed", "hidden_state_to_token"],
    "optimizer.py": ["step"],
    "classifier.py": ["__init__"],
    "paraphrase_detection.py": ["forward"],
    "sonnet_generation.py": ["forward"],
}


def copied(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def course_form(folder, **forms):
    copied(folder, starter_files.LESSON)
    for name, text in starter_files.texts(**forms).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def grade(submitted, tmp_path, *words):
    out = tmp_path / "results.json"
    main(["grade", str(submitted), "--out", str(out), *map(str, words)])
    return json.loads(out.read_text(encoding="utf-8"))


def blanked(text: str, names: list[str]) -> str:
    """The text with `raise NotImplementedError` for the bodies of these functions."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.body = ast.parse("raise NotImplementedError").body
    return ast.unparse(tree)


def outputs(document) -> dict[str, str]:
    return {test["name"].partition(":")[0]: test["output"] for test in document["tests"]}


def test_a_submission_of_the_courses_form_gets_all_points_of_the_code(tmp_path, capsys):
    document = grade(course_form(tmp_path / "starter"), tmp_path)
    assert document["score"] == CODE, [t for t in document["tests"] if t["status"] == "failed"]
    assert f"{CODE:.2f} of {CODE:.2f} points" in capsys.readouterr().err


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
def test_a_starter_as_it_is_gets_nothing_and_each_blank_is_named(tmp_path):
    folder = course_form(tmp_path / "starter")
    for name, blanks in BLANKS.items():
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


# -- the form of the results -------------------------------------------------------------------


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
    words = ["-m", "course.autograder", "grade", str(folder), "--out", str(out)]
    started = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not out.exists() or json.loads(out.read_text(encoding="utf-8"))["score"] < 5:
        time.sleep(0.1)
        assert started.poll() is None
    started.send_signal(signal.SIGKILL)
    started.wait()
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


# -- the points --------------------------------------------------------------------------------


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


# -- the plainer container of Gradescope ---------------------------------------------------------

IN_A_CONTAINER = """
import json, os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from course.autograder import grade, sandbox
from course.autograder.checks import attention
from course.autograder.results import Results
from course.autograder.rubric import read_rubric
sandbox.degree = lambda: "user"
grade.CHECKS, grade.PRINTED = attention.CHECKS, 20_000
results = Results(Path({out!r}), read_rubric())
grade.close_folders(Path({closed!r}))
grade.grade(Path({folder!r}), results, gold=None)
"""


@pytest.mark.slow
@pytest.mark.skipif(sandbox.degree() != "namespaces", reason="needs root on Linux")
def test_without_namespaces_another_user_and_closed_folders_protect_as_well(tmp_path):
    """The interpreter is shown at a place that all users reach, as in a container."""
    import attacks
    import torch

    closed, python = tmp_path / "autograder", tmp_path / "python"
    tmp_path.chmod(0o755)
    closed.mkdir(mode=0o755)
    python.mkdir()
    (closed / "gold").write_text("TAKEN", encoding="utf-8")
    out = closed / "results.json"
    folder = copied(closed / "s", ("config.py", "utils.py", "modules/attention.py"))
    attempts = attacks.ATTEMPTS.replace('attempt("transformers", found)', "")
    secrets = [str(out), str(closed / "gold"), str(closed / "s/config.py")]
    with open(folder / "modules/attention.py", "a", encoding="utf-8") as file:
        file.write(f"\nSECRETS, GRADER = {secrets}, 1{attempts}")
    site = os.path.dirname(os.path.dirname(torch.__file__))
    program = IN_A_CONTAINER.format(
        paths=[str(ROOT), site], out=str(out), closed=str(closed), folder=str(folder)
    )
    words = [f"{python}/bin/{os.path.basename(os.path.realpath(sys.executable))}", "-c", program]
    mount = f"mount --bind {sys.base_prefix} {python}; for f in {tmp_path.parents[0]} "
    mount += f"{tmp_path.parents[1]}; do chmod a+x $f; done; "
    script = mount + 'exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    printed = document["extra_data"]["printed"]
    assert document["extra_data"]["isolation"] == "user"
    assert "TAKEN" not in printed and printed.count("refused:") == 61, printed
    assert document["score"] == sum(read_rubric().points["attention"].values())
