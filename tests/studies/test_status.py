"""What is done, what is missing, and how long that may take, from what was recorded."""

import json
import re
from types import SimpleNamespace

import pytest
from course_files import write_course
from test_plan import record_of, study_of

from engine.files import ROOT
from studies import status
from studies.entries import Contestant, load
from studies.estimates import JOBS, RESULTS, seconds_of, training_rows
from studies.plan import plan
from studies.records import Records

PLAIN, SLOW = Contestant("plain"), Contestant("slow")


@pytest.fixture
def half_done(tmp_path):
    """A study of two contestants with two runs recorded of the first and one of the second."""
    study, records = study_of(PLAIN, SLOW), Records(tmp_path)
    for run in plan(study, [])[1]:
        if (run.contestant == PLAIN and run.seeds != (3,)) or run.seeds == (1,):
            seconds = {PLAIN: 100 * run.seeds[0], SLOW: 3600}[run.contestant]
            records.append("s", record_of(run, 0.5) | {"seconds": seconds})
    return study, records


def test_missing_runs_take_as_long_as_their_contestant_s_recorded_ones(half_done):
    study, records = half_done
    assert status.counts(study, records.read("s")) == (3, 3, 150 + 2 * 3600)
    line = status.status([study], records).splitlines()[1]
    assert line.split() == ["a", "3", "3", "2.0", "h"]
    assert status.counts(study, []) == (0, 6, None)


def test_a_command_says_what_it_is_about_to_do(half_done):
    study, records = half_done
    text = status.budget([study], records, SimpleNamespace(limit=None, jobs=2))
    assert text == "3 runs are missing: about 1.0 h"


# -- GPT-2 itself ----------------------------------------------------------------------------------


def test_hours_and_machine_of_gpt2_come_before_the_start_or_are_unknown(tmp_path):
    args = SimpleNamespace(limit=None, jobs=1, use_gpu=False, data_dir=write_course(tmp_path))
    text = status.budget(load(suite="gpt2"), Records(tmp_path / "none"), args)
    assert re.search(r"gpt2-sst, full-model, 3 runs: 0\.\d+ hours of training on 2 CPU", text)
    assert "gpt2-cfimdb, last-linear-layer, 3 runs: unknown" in text
    args.use_gpu = True
    text = status.budget(load(suite="gpt2"), Records(tmp_path / "none"), args)
    assert "gpt2-paraphrase, gpt2, 3 runs: unknown" in text


def test_an_estimate_is_the_benchmark_s_time_a_row():
    [study] = load(["gpt2-sst"])
    [run] = [run for run in plan(study, [])[1] if run.seeds == (1,) and "full" in str(run)]
    results = json.loads((RESULTS / "core.json").read_text(encoding="utf-8"))
    [job] = [job for job in results["jobs"] if job["name"] == JOBS["sst", "full-model"]]
    seconds, machine = seconds_of(run, 2 * job["work"], use_gpu=False)
    assert seconds == pytest.approx(10 * 2 * job["seconds"]["ours"]["median"])  # 10 epochs
    assert machine == results["hardware"]


@pytest.mark.parametrize("task", ["sst", "cfimdb", "paraphrase", "sonnet"])
def test_rows_are_those_of_the_training_file(task):
    assert training_rows(task, ROOT / "data" / "sample") > 10
