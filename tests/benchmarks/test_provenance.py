"""Results name a commit that can be checked out, or their tables say that there is none."""

import importlib
from argparse import Namespace

import pytest

from benchmarks import provenance
from engine.errors import InputError
from engine.files import ROOT

COMMIT = "0123456789abcdef"
PROGRAMS = sorted(
    path
    for folder in ("benchmarks", "studies")
    for path in (ROOT / folder).glob("*.py")
    if "def main(" in (text := path.read_text(encoding="utf-8")) and f"{folder}/results/" in text
)


@pytest.mark.parametrize(
    "commit, reason",
    [(COMMIT, ""), (f"{COMMIT}+changes", "uncommitted changes"), ("unknown", "knows no commit")],
)
def test_code_that_no_commit_holds_is_measured_only_when_asked_for(commit, reason, monkeypatch):
    monkeypatch.setattr(provenance, "current_commit", lambda: commit)
    provenance.check_committed(Namespace(uncommitted=True))
    if not reason:
        provenance.check_committed(Namespace(uncommitted=False))
        return
    with pytest.raises(InputError, match=f"{reason}.*: commit first, or give --uncommitted$"):
        provenance.check_committed(Namespace(uncommitted=False))


def test_the_sentence_names_every_commit_and_says_if_one_does_not_hold_the_code():
    results = {"commit": COMMIT, "jobs": [{"commit": COMMIT}, {"seconds": [1, 2]}]}
    assert provenance.described(results) == "Measured at `0123456`."
    results["jobs"].append({"commit": "fedcba9876543210+changes"})
    expected = "Measured at `0123456`, `fedcba9`, with changes that no commit holds."
    assert provenance.described(results) == expected


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_that_measures_refuses_uncommitted_code(path, monkeypatch, refused):
    program = importlib.import_module(f"{path.parent.name}.{path.stem}")
    monkeypatch.setattr(provenance, "current_commit", lambda: f"{COMMIT}+changes")
    needed = {"pretrain": ["--text", "a", "--valid", "a"], "__main__": ["run"]}
    monkeypatch.setattr("sys.argv", [str(path), *needed.get(path.stem, [])])
    with refused("it has uncommitted changes: commit first, or give --uncommitted"):
        program.main()
