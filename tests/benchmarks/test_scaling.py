"""Growth is measured point by point, kept, fitted and drawn; both peers take real steps."""

import json

import pytest
import torch

from benchmarks import scaling, scaling_curves
from config import GPT2Config
from engine.errors import InputError

TINY = GPT2Config(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(scaling.SHAPES, "tiny", TINY)


def arguments(tmp_path, *words):
    flags = ["--out", str(tmp_path / "s.json"), "--size", "gpt2", "--sizes", "mini", *words]
    return scaling.get_args([*flags, "--batches", "1", "2", "4", "--lengths", "8", "16", "32"])


@pytest.fixture
def made_up(monkeypatch):
    """Costs by a known law in place of measuring; the points that were asked for are noted."""
    calls = []

    def alone(measure, peer, size, shape, *_):
        calls.append((peer, size, shape))
        b, t = shape
        power = 2 if peer == "starter" else 1
        return {"seconds": 0.5 + b * (t / 10) ** power, "peak_mb": 100 + b * t**power}

    monkeypatch.setattr(scaling, "alone", alone)
    return calls


def run(args) -> dict:
    results = scaling.load(args)
    scaling.run(args, results, lambda message: None)
    return results


def test_the_exponents_are_those_of_the_law(made_up, tmp_path):
    fits = run(arguments(tmp_path))["fits"]
    for figure in scaling_curves.FIGURES:
        assert fits[f"starter, length, {figure}"]["exponent"] == pytest.approx(2, abs=0.02)
        assert fits[f"ours, length, {figure}"]["exponent"] == pytest.approx(1, abs=0.02)
        assert fits[f"ours, batch, {figure}"]["exponent"] == pytest.approx(1, abs=0.02)
    assert not any("size" in name for name in fits)  # one size is no curve


def test_measured_points_are_not_measured_again(made_up, tmp_path):
    first = run(arguments(tmp_path))
    assert len(made_up) == 2 * (3 + 3 + 1)
    assert run(arguments(tmp_path)) == first == json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert len(made_up) == 14
    run(arguments(tmp_path, "--force"))
    assert len(made_up) == 28


def test_points_of_other_settings_are_not_mixed(made_up, tmp_path):
    run(arguments(tmp_path))
    with pytest.raises(InputError, match="another --out, or --force"):
        scaling.load(arguments(tmp_path, "--positions", "128"))


def test_a_point_beyond_the_memory_is_left_out(monkeypatch, tmp_path):
    def alone(*_):
        raise torch.OutOfMemoryError("CUDA")

    monkeypatch.setattr(scaling, "alone", alone)
    said = []
    args = arguments(tmp_path)
    results = scaling.load(args)
    scaling.run(args, results, said.append)
    assert results["points"] == {} and len(said) == 14


def test_the_table_and_the_picture(made_up, tmp_path):
    results = run(arguments(tmp_path))
    assert "| length | ours | positions^1.00 | positions^1.00 |" in scaling_curves.table(results)
    scaling_curves.draw(results, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("step", [scaling.our_step, scaling.starter_step])
def test_a_step_trains_the_whole_classifier(step, monkeypatch):
    models = []
    for place in ("benchmarks.starter.StarterAdamW", "engine.optimizers.AdamW"):
        monkeypatch.setattr(place, spying(place, models))
    torch.manual_seed(0)
    call = step(TINY, (2, 8), torch.device("cpu"), False)
    [parameters] = models
    before = [p.detach().clone() for p in parameters]
    call()
    call()
    seen = [n for n, p in enumerate(parameters) if not torch.equal(before[n], p)]
    assert len(seen) == len(parameters)


def spying(place: str, models: list):
    module, name = place.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[name]), name)

    def make(parameters, **options):
        models.append(list(parameters))
        return original(models[-1], **options | {"lr": 0.1})

    return make


@pytest.mark.parametrize("peer", scaling_curves.PEERS)
def test_a_point_s_figures(tiny, peer):
    found = scaling.measure(peer, "tiny", (2, 8), False, False)
    assert found["seconds"] > 0 and found["peak_mb"] > 50
