"""Every folder of programs/ is a program, `python -m programs.NAME`, that says how it is used."""

import os
import subprocess
import sys

import pytest

from engine.files import ROOT

NAMES = sorted(path.parent.name for path in ROOT.glob("programs/*/__main__.py"))
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_the_flags_in_any_terminal_and_writes_nothing(name, tmp_path):
    environment = os.environ | ASCII | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"programs.{name}", "--help"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: ") and "  --" in run.stdout and run.stdout.isascii()
    assert list(tmp_path.iterdir()) == []
