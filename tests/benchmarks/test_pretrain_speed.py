"""The benchmark of pre-training's steps runs at a tiny size, and all ways do the same step."""

import json

import pytest
import torch
from course_files import call_main, work_in
from recorder import CallAgain

import pretrain
from benchmarks import pretrain_speed
from benchmarks.pretrain_speed import Steps, get_args, table
from config import GPT2Config
from engine.recorded_gradients import RecordedGradients
from engine.recorder import RECORDERS

TINY = GPT2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
)
WORDS = ["--sizes", "mini", "--block", "16", "--batch_size", "2", "--vocab_size", "64"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(pretrain.SHAPES, "mini", TINY)


class Here:
    """In the place of a process of its own."""

    def __init__(self, make, *arguments):
        self.made = make(*arguments)

    def ask(self, method, *arguments):
        return getattr(self.made, method)(*arguments)

    def close(self): ...


def test_every_way_is_a_row_with_its_rate_and_memory(tmp_path, monkeypatch, capsys):
    work_in(monkeypatch, tmp_path)
    monkeypatch.setattr(pretrain_speed, "Alone", Here)
    words = [*WORDS, "--ways", "whole", "chunked", "eager", "--steps", "2", "--repeats", "1"]
    call_main(monkeypatch, "benchmarks.pretrain_speed", *words, "--uncommitted", "--out", "s.json")
    results = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    rows = results["sizes"]["mini"]
    assert list(rows) == ["whole", "chunked", "eager"]
    for row in rows.values():
        rate = row["tokens_per_second"]["median"]
        assert row["step_ms"] == pytest.approx(1000 * 2 * 16 / rate) and row["peak_mb"] > 0
    assert table(results) in capsys.readouterr().out


def test_all_ways_take_the_same_steps():
    ends = []
    for way in ("whole", "chunked", "eager"):
        steps = Steps("mini", way, get_args(WORDS))
        ends.append(steps.trainer.model.state_dict())
    for other in ends[1:]:
        for name, tensor in ends[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_compiled_steps_are_measured_with_and_without_recordings(monkeypatch):
    """Here with kernels that need no compiler."""
    compile_, ends = torch.compile, []
    monkeypatch.setattr(
        "torch.compile", lambda model, dynamic, mode: compile_(model, backend="aot_eager")
    )
    monkeypatch.setitem(RECORDERS, "cpu", CallAgain)
    for way, recorded in {"eager": False, "compiled": False, "compiled-recorded": True}.items():
        steps = Steps("mini", way, get_args(WORDS))
        assert isinstance(steps.trainer.gradients, RecordedGradients) == recorded
        compiled = steps.trainer.gradients.objective.network is not steps.trainer.model
        assert compiled == way.startswith("compiled")
        ends.append(steps.trainer.model.state_dict())
    for other in ends[1:]:
        for name, tensor in ends[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_a_size_that_would_not_end_in_time_is_left_out(tmp_path, monkeypatch, capsys):
    work_in(monkeypatch, tmp_path)
    monkeypatch.setattr(pretrain_speed, "measure", None)
    words = [*WORDS, "--minutes", "0", "--uncommitted", "--out", "s.json"]
    call_main(monkeypatch, "benchmarks.pretrain_speed", *words)
    assert len(capsys.readouterr().out.splitlines()) == 2 and not list(tmp_path.glob("s.json"))
