"""Folders that appear whole or not at all."""

import os
import signal
from pathlib import Path

import pytest
from children import at_write, in_child

from engine.files import atomic_folder, remove_leftovers


def fill(folder: Path, word: str) -> None:
    for name in ("a", "b", "c"):
        (folder / name).write_text(word, encoding="utf-8")


def content(folder: Path) -> dict:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def write(folder: Path, word: str) -> None:
    with atomic_folder(folder) as scratch:
        fill(scratch, word)


NEW, OLD = dict.fromkeys("abc", "new"), dict.fromkeys("abc", "old")


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole(there, tmp_path):
    if there:
        (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_replaced_stays(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "notes").write_text("mine", encoding="utf-8")
    write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == NEW | {"notes": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_one(error, tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "out") as scratch:
        fill(scratch, "new")
        raise error
    assert content(tmp_path / "out") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(number, tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    at_write(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
    status = in_child(lambda: write(tmp_path / "out", "new"))
    assert os.WIFSIGNALED(status)
    assert content(tmp_path / "out") == (NEW if number == 4 else OLD)
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == NEW and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_that_was_left_between_its_two_renames_comes_back(tmp_path):
    write(tmp_path / ".out.before", "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert content(tmp_path / "out") == OLD
