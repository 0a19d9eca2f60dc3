"""What a run says at its start, in its epochs and at its end: for people, for machines, quietly."""

import io
import json
import math
import shlex
from importlib.util import find_spec

import pytest
import torch
from course_files import call_main, work_in, write_course, write_model

from engine.parallel import Worker
from engine.progress_bar import SECONDS, Bar, EpochBar, bars
from engine.run_facts import majority_figures, wilson_interval
from engine.run_report import Report
from engine.settings import Settings

SST = ["--dataset", "sst", "--model_size", "model", "--epochs", 2]
SONNET = ["--model_size", "model", "--epochs", 2, "--max_new_tokens", 8]


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=20)
    write_model("model")
    return tmp_path


def test_a_person_reads_aligned_facts_figures_beside_the_baseline_and_the_next_command(
    place, monkeypatch, capsys
):
    call_main(monkeypatch, "classifier", *SST)
    said = capsys.readouterr().out
    start, _, rest = said.partition("Epoch 0: ")
    _, head, *lines = start.splitlines()  # the first warns of a row in two files
    assert head == "sst: last-linear-layer, lr 0.001"
    facts = {line[2:13].strip(): line[15:] for line in lines}
    assert list(facts) == [
        *("checkpoint", "parameters", "device", "precision", "rows", "training"),
        *("run folder", "predictions"),
    ]
    assert facts["checkpoint"] == "model" and facts["precision"] == "float32"
    assert facts["parameters"].startswith(f"{5 * 33:,} trainable of ")
    assert facts["rows"] == "20 train, 10 dev, 6 test"
    assert facts["training"] == "2 epochs of 3 steps"
    assert "Epoch 1: " in rest and "sst: dev acc :: " in rest
    [folder] = place.glob("runs/sst-*")
    shown = [line for line in rest.splitlines() if line.split()[:1] == ["report"]]
    with_programs = find_spec("programs.report") is not None
    words = ["report", "python", "-m", "programs.report", f"runs/{folder.name}"]
    assert [line.split() for line in shown] == [words] * with_programs
    *_, acc, _, _, _, predict, after = [line for line in rest.splitlines() if line not in shown]
    assert acc.startswith("  dev acc ") and "95 % interval" in acc and "10 rows" in acc
    assert "majority-class baseline 0." in acc
    assert after.startswith("next: python classifier.py --dataset sst --checkpoint runs/sst-")
    for command in (predict.split("predict")[1], after.removeprefix("next:")):
        _, _, *words = shlex.split(command)
        call_main(monkeypatch, "classifier", *words)


@pytest.mark.parametrize("program, words", [("classifier", SST), ("sonnet_generation", SONNET)])
def test_a_machine_reads_one_object_a_line_and_nothing_else(
    program, words, place, monkeypatch, capsys
):
    call_main(monkeypatch, program, *words, "--json")
    said = capsys.readouterr()
    start, *epochs, end = [json.loads(line) for line in said.out.splitlines()]
    assert [e["event"] for e in (start, *epochs, end)] == ["start", "epoch", "epoch", "end"]
    assert [e["epoch"] for e in epochs] == [0, 1]
    best = epochs[end["best_epoch"]]
    assert end["figures"] == {k: v for k, v in best.items() if k.startswith("dev_")}
    assert start["folder"] == end["folder"] and (place / end["checkpoint"]).is_file()
    assert all((place / path).is_file() for path in end["predictions"].values())
    assert {e["task"] for e in (start, *epochs, end)} == {start["task"]}
    call_main(monkeypatch, program, *words, "--json", "--resume")
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in again] == ["start", "end"]
    assert again[-1] == end


def test_without_the_programs_none_is_offered(place, monkeypatch, capsys):
    monkeypatch.setattr("engine.run_facts.ROOT", place)
    call_main(monkeypatch, "classifier", *SST)
    assert "programs.report" not in capsys.readouterr().out


def test_quiet_leaves_the_results(place, monkeypatch, capsys):
    call_main(monkeypatch, "classifier", *SST, "--quiet")
    said = capsys.readouterr()
    warning, first, *files = said.out.splitlines()
    assert "too, which makes dev figures look better" in warning
    assert first.startswith("sst: dev acc :: ") and not said.err
    assert len(files) == 2 and all("predictions are in" in line for line in files)


def test_predicting_alone_names_what_comes_next(place, monkeypatch, capsys):
    call_main(monkeypatch, "classifier", *SST)
    [best] = place.glob("runs/*/best.safetensors")
    capsys.readouterr()
    call_main(monkeypatch, "classifier", "--dataset", "sst", "--checkpoint", best)
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: python prepare_submit.py")


@pytest.mark.parametrize("program, words", [("classifier", SST), ("sonnet_generation", SONNET)])
def test_what_quiet_prints_of_a_checkpoint_is_in_the_json(
    program, words, place, monkeypatch, capsys
):
    """Each name and each number."""
    call_main(monkeypatch, program, *words, "--json")
    [*_, trained] = map(json.loads, capsys.readouterr().out.splitlines())
    predict = [*words, "--checkpoint", trained["checkpoint"]]
    call_main(monkeypatch, program, *predict, "--quiet")
    printed = capsys.readouterr().out
    call_main(monkeypatch, program, *predict, "--json")
    [end] = map(json.loads, capsys.readouterr().out.splitlines())
    results = [{name.removeprefix("dev_"): value for name, value in end["figures"].items()}]
    if program == "sonnet_generation":
        results = end["sonnets"].values()
        assert end["sonnets"] == trained["sonnets"] and "random lines" in end["sonnets"]
        assert end["figures"] == {"chrF": end["sonnets"]["generated"]["chrf"]}
    for row in results:
        assert row and all(name in printed for name in row)
        assert all(f"{value:.3f}" in printed for value in row.values())


def test_another_worker_says_nothing(capsys):
    for how in ({"json": True, "quiet": False}, {"json": False, "quiet": False}):
        stream = io.StringIO()
        report = Report(Settings(how), Worker(torch.device("cpu"), rank=1, world_size=2), stream)
        report.epoch({"epoch": 0, "train_loss": 1.0}, "sst")
        report.log("a line")
        said = capsys.readouterr()
        assert (said.out, said.err, stream.getvalue()) == ("", "", "")


def test_what_is_not_finite_is_null_for_a_machine():
    stream = io.StringIO()
    settings = Settings({"json": True, "quiet": False})
    report = Report(settings, Worker(torch.device("cpu")), stream)
    report.epoch({"epoch": 0, "x": math.inf}, "sst")
    report.end({"figures": {"x": math.nan, "y": 1}, "next": "predict"})
    epoch, end = map(json.loads, stream.getvalue().splitlines())
    assert epoch == {"event": "epoch", "task": "sst", "epoch": 0, "x": None}
    assert end["figures"] == {"x": None, "y": 1}


def test_the_interval_is_wilson_s_and_the_baseline_that_of_the_most_frequent_training_class():
    n, p, z = 80, 0.25, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson_interval(p, n) == pytest.approx((middle - half, middle + half), abs=1e-6)
    figures = majority_figures([0, 1, 1], [0, 0, 0, 1])
    assert figures == pytest.approx({"dev_acc": 0.25, "dev_f1": 0.2})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_has_loss_rate_rows_and_time_left_and_is_gone_without_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    group = [{"token_ids": torch.zeros(8, 3)}]
    bar = EpochBar([group] * 10, "epoch 0", first=0, total=10)
    assert bar.mininterval == SECONDS and not bar.leave
    for one in bar:
        bar.note(one, 2, 1.25, 1e-3)
        picture = str(bar)
    assert bar.rows == 2 * 8 * 10
    assert "loss 1.250, lr 0.001, " in picture and "rows/s" in picture and " left" in picture
    with bars(False):
        assert Bar([1], "eval").disable
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert EpochBar([group], "epoch 0", first=0, total=1).disable
