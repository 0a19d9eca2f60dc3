"""Root without namespaces, as in a plain container: file modes and another user protect."""

import json
import os
import subprocess
import sys
import tempfile

import attacks
import pytest
import torch
from whole_submissions import copied

from course.autograder import sandbox
from course.autograder.rubric import read_rubric
from engine.files import ROOT

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
    """The interpreter and its packages are shown where all users reach them, as in a container."""
    closed, python, site = (tmp_path / name for name in ("autograder", "python", "site"))
    tmp_path.chmod(0o755)
    for folder in (closed, python, site):
        folder.mkdir(mode=0o755)
    (closed / "gold").write_text("TAKEN", encoding="utf-8")
    out = closed / "results.json"
    folder = copied(closed / "s", ("config.py", "utils.py", "modules/attention.py"))
    attempts = attacks.ATTEMPTS.replace('attempt("transformers", found)', "")
    secrets = [str(out), str(closed / "gold"), str(closed / "s/config.py")]
    with open(folder / "modules/attention.py", "a", encoding="utf-8") as file:
        file.write(f"\nSECRETS, GRADER = {secrets}, 1{attempts}")
    program = IN_A_CONTAINER.format(
        paths=[str(ROOT), str(site)], out=str(out), closed=str(closed), folder=str(folder)
    )
    words = [f"{python}/bin/{os.path.basename(os.path.realpath(sys.executable))}", "-c", program]
    above = " ".join(str(f) for f in tmp_path.parents if f.is_relative_to(tempfile.gettempdir()))
    packages = os.path.dirname(os.path.dirname(torch.__file__))
    mounts = f"mount --bind {sys.base_prefix} {python}; mount --bind {packages} {site}; "
    script = f'{mounts}chmod a+x {above}; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    printed = document["extra_data"]["printed"]
    assert document["extra_data"]["isolation"] == "user"
    assert "TAKEN" not in printed and printed.count("refused:") == 61, printed
    assert document["score"] == sum(read_rubric().points["attention"].values())
