"""Submissions are found, scored once, and ranked; what is wrong with one stops no other."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from course_files import write
from submissions import prediction_files, write_answers, write_submissions

from course.leaderboard import scoring
from course.leaderboard.exports import safe_cell
from course.leaderboard.ranking import best, ranks
from course.leaderboard.scoring import OVERALL, Figure, overall, score_submission
from course.leaderboard.sources import find, team_and_time
from engine.errors import InputError


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    return write_answers(tmp_path_factory.mktemp("gold"))


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """Two teams with two submissions each."""
    folder = tmp_path_factory.mktemp("zips")
    write_submissions(folder, 4, per_team=2)
    return folder


# -- sources ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stem, team, time",
    [
        ("owls-2026-03-01T14-05-09", "owls", datetime(2026, 3, 1, 14, 5, 9, tzinfo=UTC)),
        ("two words 2026-03-01 14.05Z", "two words", datetime(2026, 3, 1, 14, 5, tzinfo=UTC)),
        ("team_7_20260301", "team_7", datetime(2026, 3, 1, tzinfo=UTC)),
        ("owls-2026-13-01", "owls-2026-13-01", None),
        ("gpt-2", "gpt-2", None),
    ],
)
def test_a_zips_name_tells_the_team_and_the_time(stem, team, time):
    assert team_and_time(stem) == (team, time)


EXPORT = """submission_11:
  :submitters:
  - :name: Ada Lovelace
    :sid: '1'
    :email: Ada@example.org
  - :name: Alan Turing
    :sid: 2
    :email: alan@example.org
  :created_at: 2026-03-01 14:05:09.123456000 Z
  :score: 3.0
  :results:
    output: |-
      ===== anything: at all
submission_12:
  :submitters:
  - :sid: 333
  :created_at: '2026-03-01 06:00:00 -0800'
submission_13:
  :submitters: []
"""


def test_gradescopes_export_tells_members_and_time(tmp_path):
    write(tmp_path / "submission_metadata.yml", EXPORT)
    for number in (11, 12):
        write(tmp_path / f"submission_{number}" / "predictions" / "x", "")
    (second, first), problems = find(tmp_path)
    assert (first.name, first.team) == (
        "Ada Lovelace, Alan Turing",
        "ada@example.org | alan@example.org",
    )
    assert first.time == datetime(2026, 3, 1, 14, 5, 9, tzinfo=UTC)
    assert (second.name, second.team) == ("submission_12", "333")
    assert second.time == datetime(2026, 3, 1, 14, 0, tzinfo=UTC)
    assert list(problems) == ["submission_13"]


@pytest.mark.parametrize(
    "text", ["a: [", "- a", "a: 1", "!!python/object/apply:os.system ['true']", "../x: {}\n"]
)
def test_metadata_that_are_none_run_no_code_and_lead_nowhere(tmp_path, text):
    write(tmp_path / "export" / "submission_metadata.yml", text)
    (tmp_path / "x").mkdir()
    try:
        found, problems = find(tmp_path / "export")
    except InputError as error:
        assert "submission_metadata.yml" in str(error)
    else:
        assert (found, list(problems)) == ([], ["../x"])


# -- scoring ---------------------------------------------------------------------------------------


def test_an_accuracys_interval_is_that_of_rows_drawn_one_by_one():
    right = np.arange(80) < 60
    draw = np.random.default_rng(0)
    means = [right[draw.integers(0, 80, 80)].mean() for _ in range(4000)]
    found = scoring.accuracy_interval(0.75, 80)
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.015)
    assert scoring.accuracy_interval(1.0, 80) == (1.0, 1.0)


def test_overall_is_the_mean_with_nothing_for_missing_tasks():
    figures = {"a": Figure(90.0, 0.0, 87.0, 93.0), "b": Figure(60.0, 0.0, 56.0, 64.0)}
    assert overall(figures) == Figure(75.0, None, 72.5, 77.5)  # √(3² + 4²) / 2
    assert overall({**figures, "c": Figure(problem="missing")}).value == 50.0
    assert overall({"c": Figure(problem="missing")}).problem


def test_a_submission_gets_figures_intervals_and_its_sonnets(gold, zips):
    found = score_submission(gold, sorted(zips.iterdir())[0], ("dev", "test"))
    for split in ("dev", "test"):
        assert set(found.splits[split]) == set(scoring.read_answers(gold)[split])
        for figure in found.splits[split].values():
            assert 0 <= figure.low <= figure.value <= figure.high <= 100
    assert list(found.sonnets) == ["106", "109", "128", "130"]
    assert score_submission(gold, sorted(zips.iterdir())[0], ("dev", "test")) == found


def test_an_exported_folder_may_not_link_to_what_lies_outside(gold, tmp_path):
    files = prediction_files(1.0, np.random.default_rng(0))
    for name, text in files.items():
        write(tmp_path / "sub" / name, text)
    path = tmp_path / "sub" / "predictions" / "finetune-sst-dev-out.csv"
    path.rename(tmp_path / "elsewhere.csv")
    path.symlink_to(tmp_path / "elsewhere.csv")
    found = score_submission(gold, tmp_path / "sub", ("dev",)).splits["dev"]
    assert "a link" in found["finetune-sst"].problem
    assert found["finetune-cfimdb"].value == 100


# -- ranks -----------------------------------------------------------------------------------------


def test_a_rank_counts_the_intervals_that_lie_wholly_above():
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 90, 60).round()
    high = low + draw.uniform(0, 20, 60).round()
    expected = [1 + sum(other > mine for other in low) for mine in high]
    assert ranks(low, high).tolist() == expected
    assert ranks(np.array([80.0, 75, 60]), np.array([90.0, 80, 70])).tolist() == [1, 1, 3]


def test_a_team_stands_by_its_best_submission_and_of_equal_ones_by_the_earliest():
    columns = ["submission", "team", "time", "split", "task", "value", "low", "high"]
    rows = [(1, 1, "a", 50.0), (2, 1, "b", 60.0), (3, 1, "c", 60.0), (4, 2, "d", 90.0)]
    rows = [(n, team, time, "dev", OVERALL, v, v - 1, v + 1) for n, team, time, v in rows]
    frame = pd.DataFrame([*rows, (5, 3, "e", "dev", OVERALL, None, None, None)], columns=columns)
    found = best(frame, "dev")
    assert found[["submission", "rank"]].to_numpy().tolist() == [[4, 1], [2, 2]]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", " =1"])
def test_no_cell_is_a_formula(text):
    assert safe_cell(text) == f"'{text}"
    assert safe_cell("a=1") == "a=1" and safe_cell(-1.5) == -1.5
