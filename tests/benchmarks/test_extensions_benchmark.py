"""The benchmark of techniques measures what it says, every technique, in processes of their own."""

import argparse
import json
import re
from functools import partial

import pytest
from technique_cases import NAMES

import pretrain
from benchmarks import extension_tables
from benchmarks import extensions as benchmark
from config import GPT2Config
from engine.files import ROOT
from studies.entries import load
from studies.plan import checkpoint_name
from studies.records import Records

pytest.importorskip("extensions.lora", reason="no extensions/ here")

TINY = GPT2Config(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(pretrain.SHAPES, "tiny", TINY)


TECHNIQUES = set(NAMES)


def cells() -> dict[str, tuple[str, str]]:
    """What the page says of each technique's cost and result."""
    page = (ROOT / "extensions" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.py` \|.* \| ([^|]+) \| ([^|]+) \|$", page, flags=re.MULTILINE)
    return {name: (cost, result) for name, cost, result in rows}


def test_every_technique_is_measured_or_the_page_says_that_it_is_not():
    measured = {flags.split(":")[0] for flags in benchmark.TECHNIQUES} - {extension_tables.PLAIN}
    assert measured <= TECHNIQUES and len(measured) > 15
    assert {cells()[name][0] for name in TECHNIQUES - measured} <= {extension_tables.NOT_YET}


def test_every_technique_is_tried_for_its_help_or_the_page_says_why_not():
    tried = {
        one.name.split(":")[0]
        for study in load(suite="techniques")
        for one in study.contestants
        if one.name != study.baseline
    }
    assert tried <= TECHNIQUES and len(tried) > 13
    why_not = {extension_tables.NOT_YET, "– (the same numbers)"}
    assert {cells()[name][1] for name in TECHNIQUES - tried} <= why_not


def test_a_step_s_figures(tiny):
    plain, lora = (
        benchmark.measure_step("tiny", flags, (2, 8), False, False) for flags in ("", "lora:rank=2")
    )
    d, l, v = 32, 2, 40  # noqa: E741
    layer = 4 * (d * d + d) + 2 * d * 64 + 64 + d + 4 * d
    assert plain["trained"] == (v + 1024) * d + l * layer + 2 * d + 5 * d + 5
    assert lora["trained"] < plain["trained"] / 5
    assert plain["seconds"] > 0 and plain["peak_mb"] > 50


def test_reading_is_measured_with_what_an_adapter_trains(tiny, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "alone", lambda work, *arguments: work(*arguments))
    args = argparse.Namespace(sizes=["gpt2", "tiny"], use_gpu=False, bf16=False)
    found = benchmark.reading(args)["figures"]
    assert list(found) == [
        "tiny: lora gradient_checkpointing",
        "tiny: qlora gradient_checkpointing",
    ]
    for name, flags in zip(found, ("lora", "qlora"), strict=True):
        built = benchmark.measure_step("tiny", flags, (2, 8), False, False)
        assert found[name]["trained"] == built["trained"] and found[name]["peak_mb"] > 50


@pytest.mark.parametrize("kind", ["dense", "torch SDPA", "flash_attention", "sliding_window"])
def test_an_attention_s_figures(kind):
    found = benchmark.measure_attention(kind, 64, False, False)
    assert found["seconds"] > 0 and found["peak_mb"] > 50


def fake(name: str, seconds: float, *, peak_mb: float = 10.0) -> dict:
    return {"trained": 1000, "seconds": seconds, "peak_mb": peak_mb}


def test_rounds_alternate_and_give_medians(capsys):
    work = {key: partial(fake, key, at) for key, at in (("", 1.0), ("lora", 2.0))}
    found = benchmark.alternate(work, 3)
    assert found["lora"]["seconds"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    order = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert order == ["plain", "lora"] * 3
    assert extension_tables.cost(found, "lora") == "time 2.00×, memory 1.00×"
    fewer = found | {"lora": found["lora"] | {"trained": 500_000}}
    assert extension_tables.cost(fewer, "lora") == "time 2.00×, memory 1.00×, trains 0.50 M"
    table = extension_tables.step_table(found)
    assert "| plain | 1,000 | 1,000 | 1.00× | 10 | 1.00× |" in table
    assert "| `lora` | 1,000 | 2,000 | 2.00× | 10 | 1.00× |" in table


def test_the_table_of_memory_has_no_times():
    table = extension_tables.memory_table({"a: lora": fake("a: lora", 1.0, peak_mb=1234.4)})
    assert table.splitlines()[2:] == ["| `a: lora` | 1,000 | 1,234 |"]


def test_sizes_are_compared_with_their_own_plain_run():
    figures = {}
    for name, at in (("a: ", 1.0), ("a: lora", 0.5), ("b: ", 4.0), ("b: lora", 3.0)):
        figures[name] = fake(name, at) | {"seconds": {"median": at, "min": at, "max": at}}
    figures["c: lora"] = figures["b: lora"]
    table = extension_tables.step_table(figures)
    assert "| `c: lora` | 1,000 | 3,000 | – | 10 | – |" in table
    assert "| `a: lora` | 1,000 | 500 | 0.50× |" in table
    assert "| `b: lora` | 1,000 | 3,000 | 0.75× |" in table


def test_the_picture_and_table_of_attentions(tmp_path):
    figures = {
        f"{kind}: {t}": {"seconds": {"median": t / 1e6}, "peak_mb": t / 10}
        for kind in ("dense", "torch SDPA")
        for t in (256, 512)
        if (kind, t) != ("dense", 512)
    }
    assert "| 512 | – | 0.5 ms, 51 MB |" in extension_tables.attention_table(figures)
    extension_tables.draw(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(figures)


RESULTS = ROOT / "benchmarks" / "results"


def test_every_technique_with_a_cost_is_measured_still_and_the_page_names_the_machine():
    results = json.loads((RESULTS / "extensions.json").read_text("utf-8"))
    assert set(results["techniques"]["figures"]) <= set(benchmark.TECHNIQUES)
    page = (ROOT / "extensions" / "README.md").read_text(encoding="utf-8")
    assert results["techniques"]["hardware"] in page


@pytest.mark.parametrize("suite", ["pretraining", "techniques", "programs"])
def test_the_studies_are_of_the_bundled_checkpoint_and_whole_files(suite):
    now = {"checkpoint": checkpoint_name("gpt2-mini"), "limit": None}
    for run in Records(ROOT / "studies" / "results").read(suite):
        assert now.items() <= run["settings"].items()
