"""Whole commands: run to their end or stopped in time, tests counted, training timed by epochs."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import whole_commands
from benchmarks.whole_commands import Outcome, command_table, run, run_tests, run_training
from engine.files import ROOT


def script(folder, text: str) -> list:
    (folder / "it.py").write_text(text, encoding="utf-8")
    return [folder / "it.py"]


def test_what_a_command_says_and_how_it_ends_is_kept(tmp_path):
    words = script(
        tmp_path, "import sys\nprint('one')\nprint('two', file=sys.stderr)\nsys.exit(3)\n"
    )
    found = run(words, tmp_path, 60)
    assert found.status == 3 and sorted(found.lines) == ["one", "two"] and found.seconds > 0


def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    words = script(tmp_path, "import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    started = time.monotonic()
    assert run(words, tmp_path, 2).status is None
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("parallel", [False, True])
def test_tests_are_counted_and_those_that_fail_are_named(parallel, tmp_path, monkeypatch):
    if parallel:
        pytest.importorskip("xdist")
    monkeypatch.setattr(whole_commands, "WORKERS", 2 if parallel else 1)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\ndef test_good(): pass\n"
        "@pytest.mark.gpu\ndef test_bad(): assert 1 == 2\n"
        "def test_other(): assert 0\n",
        encoding="utf-8",
    )
    found = run_tests(120, folder=tmp_path)
    assert found["status"] == 1 and found["workers"] == (2 if parallel else 1)
    assert "1 failed" in found["outcome"] and "1 passed" in found["outcome"]
    assert not found["outcome"].startswith("=")
    [failed] = found["failed"]
    assert "test_bad" in failed


def test_without_xdist_there_is_one_process(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(whole_commands.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        whole_commands, "run", lambda words, *_: asked.append(words) or Outcome(None, 7.2, [])
    )
    found = run_tests(1, folder=tmp_path)
    assert found["workers"] == 1 and "--numprocesses" not in asked[0]
    assert found["outcome"] == "stopped after 7 s" and found["status"] is None


@pytest.fixture
def args(data):
    return SimpleNamespace(use_gpu=False, data_dir=str(data))


def test_a_training_is_timed_from_start_to_end_and_by_epochs(args, model_folder):
    row = run_training("whole-float32", args, str(model_folder), 300)
    assert row["status"] == 0 and row["rows"] == 40 and "target" not in row
    assert len(row["epoch_seconds"]) == 10 and 0 < sum(row["epoch_seconds"]) < row["seconds"]
    assert row["command"] == "python classifier.py --dataset sst --fine-tune-mode full-model"
    json.dumps(row)


def test_the_command_is_the_course_s_own(args, model_folder):
    args.use_gpu = True
    words = whole_commands.training_words("whole-bf16", args, str(model_folder))
    assert words[0] == ROOT / "classifier.py"
    typed = "python classifier.py --use_gpu --bf16 --dataset sst --fine-tune-mode full-model"
    assert " ".join(["python", "classifier.py", *words[1:7]]) == typed


@pytest.mark.parametrize("checkpoint, rows, target", [
    ("gpt2-random", 8544, 75.0), ("gpt2-random", 100, None), ("gpt2-mini", 8544, None),
])  # fmt: skip
def test_a_target_is_for_gpt2_and_the_whole_file(checkpoint, rows, target, args, monkeypatch):
    failed = Outcome(2, 1.0, ["error: no such GPU"])
    monkeypatch.setattr(whole_commands, "run", lambda *_: failed)
    monkeypatch.setattr(whole_commands, "training_words", lambda *_: [])
    monkeypatch.setattr(whole_commands, "read_rows", lambda *_: range(rows))
    row = run_training("whole-bf16", args, f"runs/{checkpoint}", 9)
    assert row.get("target") == target and row["error"] == "error: no such GPU"


def test_the_table_has_a_row_a_command():
    row = {"command": "python x.py", "rows": 8544, "epoch_seconds": [2.0, 3.5], "seconds": 70.25}
    table = command_table({"trainings": {"a": {**row, "status": 0, "target": 75.0}}})
    assert table.splitlines()[-1] == "| `python x.py` | 8,544 | 2 | 5.5 | 70.2 | 75 |"
    table = command_table({"trainings": {"a": {**row, "status": 2}}})
    assert table.endswith("| 70.2, status 2 | – |")
    assert command_table({}) == ""


def test_the_interpreter_is_this_one(tmp_path):
    found = run(script(tmp_path, "import sys\nprint(sys.executable)\n"), tmp_path, 60)
    assert found.lines == [sys.executable]
