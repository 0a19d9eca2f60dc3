"""Work in parts: what is made is kept at once, is not made again, and is no other work's."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from children import in_child
from torch import nn

from engine import files
from engine.errors import InputError
from programs.unfinished_work import Unfinished, digest, weights_digest

WORK = {"model": "5c1f", "seed": 1, "strategy": ["beam", "sonnet"]}
ITEMS = list("abcdefg")


def at_file(monkeypatch, name: str, number: int, action) -> None:
    """Do something at the nth writing of a file of this name, before the file has that name."""
    count, sync = iter(range(1, 1000)), files.sync

    def looking(path):
        if Path(path).name.startswith(f".{name}.") and next(count) == number:
            action()
        sync(path)

    monkeypatch.setattr(files, "sync", looking)


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def ended_by(status: int, end) -> bool:
    """Whether a child came to its end by SIGKILL, or as `errors.command` ends it after Ctrl-C."""
    if end is kill:
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130


def capitals(path, *, resume=False, until=None, work=WORK) -> tuple[list[str], list[int]]:
    """The items as capitals by threes, and the parts that were made; `until`: that one fails."""
    starts = []

    def make(some, start):
        if start == until:
            raise KeyboardInterrupt
        starts.append(start)
        return [item.upper() for item in some]

    return Unfinished(path, work, resume=resume).made("big", ITEMS, size=3, make=make), starts


def test_parts_that_were_made_are_not_made_again(tmp_path):
    path = tmp_path / "unfinished.jsonl"
    with pytest.raises(KeyboardInterrupt):
        capitals(path, until=6)
    assert len(Unfinished(path, WORK, resume=True)) == 6
    assert capitals(path, resume=True) == (list("ABCDEFG"), [6])
    assert capitals(path, resume=True) == (list("ABCDEFG"), [])
    assert capitals(path) == (list("ABCDEFG"), [0, 3, 6])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_at_any_part_it_leaves_a_whole_file_of_those_before(number, tmp_path, monkeypatch):
    path = tmp_path / "unfinished.jsonl"
    with monkeypatch.context() as patch:
        at_file(patch, path.name, number, kill)
        assert ended_by(in_child(lambda: capitals(path)), kill)
    found, starts = capitals(path, resume=path.exists())
    assert found == list("ABCDEFG") and starts == [0, 3, 6][number - 1 :]
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_lines_of_json_and_goes_at_the_end(tmp_path):
    path = tmp_path / "new" / "unfinished.jsonl"
    work = Unfinished(path, WORK)
    work.made("one", [1, 2, 3], size=2, make=lambda some, start: some)
    work.made("two", [4], size=2, make=lambda some, start: some)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"work": WORK},
        {"part": "one", "start": 0, "made": [1, 2]},
        {"part": "one", "start": 2, "made": [3]},
        {"part": "two", "start": 0, "made": [4]},
    ]
    assert len(work) == 4
    work.remove()
    assert list(path.parent.iterdir()) == []


def test_texts_and_numbers_come_back_as_they_were(tmp_path):
    things = ["Ünï\u2028\n\x85", "", [7, [-1 / 3, float(torch.tensor(-1e-7))]]]
    for resume in (False, True):
        work = Unfinished(tmp_path / "unfinished.jsonl", WORK, resume=resume)
        assert work.made("all", [0, 1, 2], size=3, make=lambda *_: things) == things


def test_what_an_earlier_run_left_stays_until_there_is_something_new(tmp_path):
    path = tmp_path / "unfinished.jsonl"
    capitals(path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        capitals(path, until=0, work={**WORK, "seed": 2})
    assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        capitals(path, until=3, work={**WORK, "seed": 2})
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_without_a_path_nothing_is_kept():
    assert capitals(None) == (list("ABCDEFG"), [0, 3, 6])
    Unfinished().remove()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 2}, "differs from this one in seed: give its flags"),
        ({"seed": 2, "model": ""}, "in model, seed: "),
        ({"strategy": ["sonnet", "beam"]}, "in strategy: "),
        ({"prompts": "09be"}, "in prompts: "),
    ],
)
def test_another_work_is_refused_with_what_differs(change, said, tmp_path):
    path = tmp_path / "unfinished.jsonl"
    capitals(path)
    for theirs, ours in ((WORK, WORK | change), (WORK | change, WORK)):
        capitals(path, work=theirs)
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"^--resume: .*unfinished.jsonl: of a run") as error:
            capitals(path, resume=True, work=ours)
        assert said in str(error.value) and "\n" not in str(error.value)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]\n", '{"work": 1}\n', '{"work": {}}\n{"part": "a"}\n', '{"parts": []}\n']
)
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path = tmp_path / "unfinished.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"no file of unfinished work .*: leave --resume out"):
        capitals(path, resume=True)


def test_where_there_is_nothing_to_go_on_with_it_says_so(tmp_path):
    with pytest.raises(InputError, match=r"--resume: no .*unfinished.jsonl: give the flags"):
        capitals(tmp_path / "unfinished.jsonl", resume=True)


def test_a_model_is_known_by_every_weight_and_texts_by_every_letter():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)
    before = weights_digest(model)
    assert before == weights_digest(model)
    model[1].num_batches_tracked += 1
    counted = weights_digest(model)
    with torch.no_grad():
        model[0].bias[-1] += 1
    assert len({before, counted, weights_digest(model)}) == 3
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(b"abc")}) == 4
