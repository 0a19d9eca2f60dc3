"""A study's runs: rates are chosen by the first seed, and what is recorded is not due again."""

import pytest

from engine.errors import InputError
from engine.files import ROOT
from studies import entries
from studies.entries import Contestant, Study, load, read_suite
from studies.kinds import KINDS
from studies.plan import plan
from studies.records import Records

STUDIES = [study for suite in entries.SUITES.glob("*.toml") for study in read_suite(suite)]
RECORDED = ("pretraining", "techniques", "programs")


def study_of(*contestants: Contestant, **fields) -> Study:
    names = {"suite": "s", "name": "a", "question": "Is {} better?", "task": "sst"}
    return Study(**names | {"baseline": "plain", "contestants": contestants, **fields})


def record_of(run, value: float, **settings) -> dict:
    name, contestant, lr, seeds = run.key
    found = {"study": name, "contestant": contestant, "lr": lr, "seeds": list(seeds)}
    return found | {"figures": {run.study.figure: value}, "settings": run.settings | settings}


def done_in_rounds(study: Study, score) -> list[dict]:
    """The records of a study whose runs are done as soon as they are due."""
    records: list[dict] = []
    while due := plan(study, records)[1]:
        records += [record_of(run, score(run)) for run in due]
    return records


@pytest.mark.parametrize("task, kept", [("sst", 0.2), ("sonnet", 0.1)])
def test_the_better_rate_of_the_first_seed_is_kept_for_the_others(task, kept):
    study = study_of(Contestant("plain"), task=task, lrs=(0.1, 0.2))
    _, due, waiting = plan(study, [])
    assert [(run.lr, run.seeds) for run in due] == [(0.1, (1,)), (0.2, (1,))] and waiting == 2
    records = done_in_rounds(study, lambda run: run.lr)  # perplexity is better when it is smaller
    assert [each["lr"] for each in records if each["seeds"] != [1]] == [kept, kept]


def test_a_contestant_may_have_rates_seeds_and_others_to_wait_for():
    search = Contestant("search", seeds="first", lrs=())
    tuned = Contestant("tuned", seeds="others", lrs=(), after="search")
    both = Contestant("both", combine=2, lrs=())
    words = Contestant("words", seeds="none")
    study = study_of(Contestant("plain", lrs=(0.5,)), search, tuned, both, words, lrs=(0.1, 0.2))
    _, due, waiting = plan(study, [])
    found = [(run.contestant.name, run.lr, run.seeds) for run in due]
    assert found == [
        *(("plain", 0.5, (1,)), ("search", None, (1,))),
        *(("both", None, seeds) for seeds in ((1, 2), (1, 3), (2, 3))),
        ("words", None, ()),
    ]
    assert waiting == 2 + 2
    [first] = [run for run in due if run.contestant == search]
    _, due, _ = plan(study, [record_of(first, 0.75)])
    assert [run.found for run in due if run.contestant == tuned] == [{"dev_acc": 0.75}] * 2


@pytest.mark.parametrize("change", [{"limit": 5}, {"flags": "--epochs 9"}, {"checkpoint": "x"}])
def test_a_record_of_other_settings_is_not_the_run_s(change):
    study = study_of(Contestant("plain"))
    run = plan(study, [])[1][0]
    assert run.is_in(record_of(run, 0.5)) and not run.is_in(record_of(run, 0.5, **change))
    before = record_of(run, 0.5)
    del before["settings"]["flags"]  # not written down then
    assert run.is_in(before)


@pytest.mark.parametrize("suite", RECORDED)
def test_of_these_suites_a_contestant_is_recorded_whole_or_not_at_all_and_no_run_is_left_over(
    suite,
):
    records = Records(ROOT / "studies" / "results").read(suite)
    used = set()
    for study in load(suite=suite):
        done, due, _ = plan(study, records)
        begun = {run.contestant.name for run, _ in done}
        assert study.baseline in begun
        assert not begun & {run.contestant.name for run in due}
        used |= {run.digest for run, _ in done}
    assert len(used) == len(records)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_declared_study_can_be_planned(study):
    assert {one.kind or study.kind for one in study.contestants} <= KINDS.keys()
    assert "{}" in study.question and study.question.endswith("?")
    assert {one.after for one in study.contestants} <= {"", *(o.name for o in study.contestants)}
    digests = [run.digest for run in plan(study, [])[1]]
    assert len(digests) == len(set(digests)) > 0


def test_names_are_unique_and_what_needs_the_hub_is_run_only_when_asked_for():
    names = [study.name for study in STUDIES]
    assert len(names) == len(set(names))
    assert not any(study.hub for study in load()) and len(load(["modes-sst"])) == 1
    with pytest.raises(InputError, match="modes-sts: did you mean modes-sst"):
        load(["modes-sts"])
    with pytest.raises(InputError, match="--suite program: did you mean programs"):
        load(suite="program")


@pytest.mark.parametrize(
    "text, said",
    [
        ("study = 1", "expected"),
        ("[[study]]\nnme = 'a'", "nme: did you mean name"),
        ("[[study]]\nname = 'a'", "missing"),
        ("[[study]", "expected"),
    ],
)
def test_a_wrong_entry_is_one_error(text, said, tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_suite(path)
