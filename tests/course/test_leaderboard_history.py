"""Each submission is scored once, in its team's turn, whatever kills a run or a process."""

import os
import shutil

import pytest
from course_files import write
from submissions import write_zip

from course.leaderboard import __main__ as program
from course.leaderboard.schedule import DIED, Processes, score_all
from course.leaderboard.scoring import OVERALL, Figure, Result
from course.leaderboard.sources import find
from course.leaderboard.store import History
from engine.errors import InputError


def counted(results):
    """A scorer that gives results by the zip's name, and the list of what it was asked."""
    asked = []

    def score(path, splits):
        asked.append((path.name, splits))
        return results(path, splits)

    return score, asked


def good(path, splits):
    return Result({split: {"sst": Figure(50.0, 50.0, 40.0, 60.0)} for split in splits})


def go(history, folder, score):
    found, _ = find(folder)
    entered = program.enter(history, found, {})
    for _ in score_all(history, [*entered.items()], score, 2):
        pass


def numbered(folder, count, first=0):
    for i in range(first, count):
        write_zip(folder / f"team-2026-03-{i + 1:02}.zip", {"n": str(i)})


def test_test_is_scored_for_three_successful_submissions_and_dev_for_all(tmp_path):
    def second_fails(path, splits):
        return Result(problem="broken") if "03-02" in path.name else good(path, splits)

    numbered(tmp_path / "zips", 6)
    score, asked = counted(second_fails)
    history = History(tmp_path / "h.sqlite", {"dev": "a", "test": "b"})
    go(history, tmp_path / "zips", score)
    assert [splits for _, splits in asked] == [("dev", "test")] * 4 + [("dev",)] * 2
    frame = history.frame()
    scored = frame[(frame["task"] == OVERALL) & frame["value"].notna()]
    assert scored.groupby("split").size().to_dict() == {"dev": 5, "test": 3}
    assert frame["on_test"].drop_duplicates().tolist() == [1, 0]
    numbered(tmp_path / "zips", 7, first=6)
    go(history, tmp_path / "zips", score)
    assert asked[6:] == [("team-2026-03-07.zip", ("dev",))]


def test_a_killed_run_goes_on_and_nothing_is_scored_twice(tmp_path):
    def killed(path, splits):
        if "03-03" in path.name:
            raise KeyboardInterrupt
        return good(path, splits)

    numbered(tmp_path / "zips", 4)
    shutil.copy(tmp_path / "zips/team-2026-03-01.zip", tmp_path / "zips/team-2026-03-09.zip")
    score, asked = counted(killed)
    with pytest.raises(KeyboardInterrupt):
        go(History(tmp_path / "h.sqlite", {"dev": "a"}), tmp_path / "zips", score)
    score, again = counted(good)
    history = History(tmp_path / "h.sqlite", {"dev": "a"})
    go(history, tmp_path / "zips", score)
    assert [name[-6:-4] for name, _ in asked] == ["01", "02", "03"]
    assert [name[-6:-4] for name, _ in again] == ["03", "04"]
    assert history.frame()["submission"].nunique() == 4
    other = History(tmp_path / "h.sqlite", {"dev": "other"})
    assert other.frame().empty
    go(other, tmp_path / "zips", counted(good)[0])
    assert len(other.frame()) == len(history.frame())


def test_a_file_that_is_no_history_is_refused(tmp_path):
    write(tmp_path / "h.sqlite", "no database at all, but long enough to be one\n" * 100)
    with pytest.raises(InputError, match="no history of a leaderboard"):
        History(tmp_path / "h.sqlite", {"dev": "a"})


def die(path, splits):
    """Unless the submission is a good one."""
    return good(path, splits) if path.name == "good" else os._exit(9)


@pytest.mark.slow
def test_a_submission_that_kills_its_process_is_named_and_the_process_replaced(tmp_path):
    processes = Processes(die, 1)
    assert processes.score(tmp_path / "bad", ("dev",)) == Result(problem=DIED, again=True)
    assert processes.score(tmp_path / "good", ("dev",)) == good(None, ("dev",))
    processes.close()


def test_what_failed_by_no_fault_of_the_submission_is_tried_again(tmp_path):
    numbered(tmp_path / "zips", 1)
    history = History(tmp_path / "h.sqlite", {"dev": "a"})
    for result in (Result(problem="the disk is full", again=True), Result(problem="no zip")):
        go(history, tmp_path / "zips", lambda path, splits, result=result: result)
        assert history.frame()["problem"].tolist() == [result.problem]
    go(history, tmp_path / "zips", lambda path, splits: 1 / 0)


def test_answers_to_test_that_come_later_leave_devs_figures_as_they_are(tmp_path):
    numbered(tmp_path / "zips", 5)
    go(History(tmp_path / "h.sqlite", {"dev": "a"}), tmp_path / "zips", good)
    score, asked = counted(good)
    (tmp_path / "zips" / "team-2026-03-01.zip").unlink()
    history = History(tmp_path / "h.sqlite", {"dev": "a", "test": "b"})
    go(history, tmp_path / "zips", score)
    assert asked == [(f"team-2026-03-0{i}.zip", ("test",)) for i in (2, 3, 4)]
    assert history.frame().groupby("split")["submission"].nunique().to_dict() == {
        "dev": 5,
        "test": 3,
    }
