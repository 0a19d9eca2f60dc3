"""The file of runs holds every line that was written, whatever happened to the writer."""

import json
import multiprocessing

import pytest

from engine.errors import InputError
from studies.records import Records

RECORD = {"study": "a", "contestant": "plain", "seeds": [1], "figures": {"dev_acc": 0.5}}


def test_what_is_appended_is_read(tmp_path):
    records = Records(tmp_path / "results")
    assert records.read("s") == []
    for seed in (1, 2):
        records.append("s", RECORD | {"seeds": [seed]})
    assert [record["seeds"] for record in records.read("s")] == [[1], [2]]


@pytest.mark.parametrize("torn", [b'{"study": "a", "cont', json.dumps(RECORD).encode(), b"\xc3"])
def test_a_torn_last_line_is_left_out_and_goes_with_the_next_run(torn, tmp_path, capsys):
    records = Records(tmp_path)
    records.append("s", RECORD)
    with open(records.path("s"), "ab") as file:
        file.write(torn)
    assert records.read("s") == [RECORD]
    records.append("s", RECORD | {"seeds": [2]})
    assert [record["seeds"] for record in records.read("s")] == [[1], [2]]
    assert "was not written to the end" in capsys.readouterr().err


LINES = {
    "no JSON": "'no JSON'",
    "[]": r"'\[\]'",
    '{"study": "a"}': "no contestant",
    json.dumps(RECORD | {"seeds": 5}): "seeds 5",
    json.dumps(RECORD | {"seeds": ["5"]}): r"seeds \['5'\]",
    json.dumps(RECORD | {"figures": []}): r"figures \[\]",
    json.dumps(RECORD | {"figures": {"dev_acc": "x"}}): "figures {'dev_acc': 'x'}",
    json.dumps(RECORD | {"settings": []}): r"settings \[\]",
}


@pytest.mark.parametrize("line", LINES)
def test_another_wrong_line_is_named(line, tmp_path):
    records = Records(tmp_path)
    records.append("s", RECORD)
    with open(records.path("s"), "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=rf"s\.jsonl, line 2: {LINES[line]}: expected a run"):
        records.read("s")


def _write(folder, name: str) -> None:
    for number in range(20):
        Records(folder).append("s", RECORD | {"study": name, "seeds": [number], "x": "y" * 9000})


def test_processes_that_write_at_once_lose_no_line(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(tmp_path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(record["study"], *record["seeds"]) for record in Records(tmp_path).read("s")]
    assert sorted(found) == [(name, number) for name in "ab" for number in range(20)]
