"""The jobs' rows: bounded, seeded, the same for every peer, as long as the file's."""

import random
import statistics
from dataclasses import replace

import pytest
from course_files import COURSE_DATA, write

from benchmarks.jobs import JOBS, Settings, Workload, read_rows
from engine.batches import tokenize


@pytest.fixture(scope="module")
def settings(model_folder, data):
    return Settings(str(model_folder), str(data), batches=2, new_tokens=5)


def test_batches_bound_the_rows(settings):
    assert len(Workload(JOBS["sst-8"], settings).rows) == 16
    everything = replace(settings, batches=0)
    assert len(Workload(JOBS["sst-8"], everything).rows) == 40
    assert len(Workload(JOBS["sst-64"], settings).rows) == 40  # the file has no more


def test_a_cpu_does_a_few_batches_and_a_gpu_all_unless_told():
    job = JOBS["cfimdb-8"]
    assert Settings("x").batches_of(job) == job.batches > 0
    assert Settings("x", use_gpu=True).batches_of(job) == 0
    assert Settings("x", use_gpu=True, batches=7).batches_of(job) == 7


def test_the_seed_alone_decides_the_rows(settings):
    def ids(seed):
        rows = Workload(JOBS["sst-8"], replace(settings, seed=seed)).rows
        return [row.sent_id for row in rows]

    assert ids(1) == ids(1) != ids(2)
    assert len(set(ids(1))) == 16


def test_blank_lines_of_a_prompt_are_not_among_its_three_lines(tmp_path):
    write(tmp_path / "sonnets_held_out.txt", "145\n\none\n\ntwo\nthree\nfour\n")
    assert [row.text for row in read_rows("sonnet", "test", tmp_path)] == ["one\ntwo\nthree\n"]


@pytest.mark.skipif(not COURSE_DATA.is_dir(), reason="needs the course's files")
@pytest.mark.parametrize("name, batches", [("sst-8", 12), ("sst-64", 3), ("evaluate", 36)])
def test_a_sample_is_as_long_as_its_file(name, batches):
    job, settings = JOBS[name], Settings("gpt2-mini", str(COURSE_DATA), batches=batches)
    lengths = [len(row.text) for row in read_rows("sst", job.split, COURSE_DATA)]
    sample = [len(row.text) for row in Workload(job, settings).rows]
    assert statistics.mean(sample) == pytest.approx(statistics.mean(lengths), rel=0.1)


def test_a_sample_to_train_on_has_the_batches_of_an_epoch(model_folder, tmp_path):
    words = [" ".join(["good"] * n) for n in range(1, 301)]
    random.Random(0).shuffle(words)
    lines = [f"{i}\tr{i}\t{text}\t{i % 5}\n" for i, text in enumerate(words)]
    header = "\tid\tsentence\tsentiment\n"
    (tmp_path / "ids-sst-train.csv").write_text(header + "".join(lines), encoding="utf-8")
    work = Workload(JOBS["sst-8"], Settings(str(model_folder), str(tmp_path), batches=4))
    lengths = sorted(len(ids) for ids in work.tokens(work.rows))
    batches = [lengths[i : i + 8] for i in range(0, 32, 8)]
    assert len(lengths) == 32 and all(batch[-1] - batch[0] < 12 for batch in batches)
    assert batches[0][0] < 60 and batches[-1][-1] > 240  # tokens: short ones and long ones


def test_what_every_peer_must_have_done(settings):
    expected = {name: Workload(job, settings).expected() for name, job in JOBS.items()}
    assert expected["sst-8"] == {"rows": 16, "steps": 2}
    assert expected["sst-64"] == {"rows": 40, "steps": 1}
    assert expected["head"] == {"rows": 160, "steps": 20}
    assert expected["evaluate"] == {"rows": 13}
    assert expected["decode"] == {"rows": 3 * 5}
    assert expected["step"] == {"steps": 2}


def test_a_sonnet_ends_with_one_end_token_and_a_prompt_with_a_line(settings):
    work = Workload(JOBS["sonnets-8"], settings)
    end = work.tokenizer.eos_token_id
    for ids in work.tokens(work.rows):
        assert ids[-1] == end and ids.count(end) == 1
    for row in Workload(JOBS["decode"], settings).rows:
        assert row.text.endswith("\n") and row.text.count("\n") == 3


def test_pairs_are_prompts_and_test_rows_have_label_0(settings):
    pairs = Workload(JOBS["paraphrase-64"], settings).rows
    assert all(row.text.startswith('Is "') and row.text.endswith("?\n") for row in pairs)
    assert {row.label for row in pairs} == {0, 1}
    tested = Workload(JOBS["evaluate"], settings).rows
    assert {row.label for row in tested} == {0}
    tokens = Workload(JOBS["evaluate"], settings).tokens(tested)
    assert tokens == tokenize(
        Workload(JOBS["evaluate"], settings).tokenizer,
        [row.text for row in tested],
        [row.sent_id for row in tested],
        512,
    )
