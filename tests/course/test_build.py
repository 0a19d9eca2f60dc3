"""autograder.zip has what Gradescope runs, and runs."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from starter_files import LESSON, texts
from test_gold import answers, submission  # noqa: F401  fixtures

from course.autograder.__main__ import main
from course.autograder.rubric import read_rubric
from engine.files import ROOT


@pytest.fixture
def unpacked(tmp_path, answers):  # noqa: F811
    out = tmp_path / "autograder.zip"
    main(["build", "--out", str(out), "--gold", str(answers), "--torch_index", "https://a.org/cpu"])
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "autograder" / "source")
    return tmp_path / "autograder" / "source"


def test_the_zip_has_the_scripts_at_its_top_the_grader_and_the_answers_alone(unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.*")}
    assert (
        (unpacked / "run_autograder").read_text(encoding="utf-8").startswith("#!/usr/bin/env bash")
    )
    assert {"setup.sh", "requirements.txt", "course/autograder/points.toml"} <= names
    assert {"course/autograder/inside/runner.py", "models/gpt2.py", "evaluation.py"} <= names
    assert {name for name in names if name.startswith("gold/")} == {
        *("gold/ids-sst-dev.csv", "gold/ids-cfimdb-dev.csv", "gold/quora-dev.csv"),
        "gold/TRUE_sonnets_held_out_dev.txt",
    }
    assert not [name for name in names if name.startswith(("tests/", "data/ids", ".git"))]


STUB = """#!/bin/sh
echo "$(basename "$0") $*" >>"$LOG"
case "$*" in *python3.13*) exit 1 ;; *"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;; esac
"""


def test_setup_installs_the_pins_without_transformers_and_torch_from_its_index(unpacked, tmp_path):
    stubs, log = tmp_path / "stubs", tmp_path / "log"
    stubs.mkdir()
    for name in ("apt-get", "python3.13", "python3.12"):
        (stubs / name).write_text(STUB, encoding="utf-8")
        (stubs / name).chmod(0o755)
    script = (unpacked / "setup.sh").read_text(encoding="utf-8")
    (unpacked / "setup.sh").write_text(
        script.replace("/opt/autograder", str(tmp_path / "opt")), encoding="utf-8"
    )
    env = {"PATH": f"{stubs}:{os.environ['PATH']}", "LOG": str(log)}
    subprocess.run(["bash", str(unpacked / "setup.sh")], env=env, check=True)
    calls = log.read_text(encoding="utf-8").splitlines()
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    [torch] = [pin for pin in pins if pin.startswith("torch==")]
    assert calls[-2].endswith(f"--index-url https://a.org/cpu {torch}")
    for name in ("safetensors", "einops", "numpy", "scikit-learn", "sacrebleu", "tqdm", "filelock"):
        assert next(pin for pin in pins if pin.startswith(f"{name}==")) in calls[-1].split()
    assert "transformers" not in log.read_text(encoding="utf-8")


def test_an_index_that_is_no_url_is_refused(tmp_path, refused):
    with refused("--torch_index"):
        main(["build", "--out", str(tmp_path / "a.zip"), "--torch_index", "x'; rm -rf /"])


WITHOUT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "pandas", "matplotlib", "peft", "tokenizers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_run_autograder_grades_what_gradescope_puts_there(unpacked, tmp_path, submission):  # noqa: F811
    """With the packages alone that setup.sh installs."""
    home = unpacked.parent
    (home / "results").mkdir()
    for name in LESSON:
        (submission / name).parent.mkdir(exist_ok=True)
        (submission / name).write_bytes((ROOT / name).read_bytes())
    for name, text in texts().items():
        (submission / name).write_text(text, encoding="utf-8")
    submission.rename(home / "submission")
    (home / "submission_metadata.json").write_text("{}", encoding="utf-8")
    python = tmp_path / "python"
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH={tmp_path}/lacking exec {sys.executable} "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)
    script = (unpacked / "run_autograder").read_text(encoding="utf-8")
    script = script.replace("/opt/autograder/bin/python", str(python))
    script = script.replace("/autograder/", f"{home}/").replace(
        "--close /autograder", f"--close {home}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((home / "results" / "results.json").read_text(encoding="utf-8"))
    code = sum(sum(section.values()) for section in read_rubric().points.values())
    assert sum(t["score"] for t in document["tests"] if t["tags"] != ["predictions"]) == code
    assert {row["name"] for row in document["leaderboard"]} >= {"sonnet chrf", "paraphrase acc"}
    assert home.stat().st_mode & 0o777 == 0o700
