"""Both peers of the pre-training benchmark learn the same: a faster one may not do less."""

import json

import pytest
from course_files import VERSES, call_main, work_in, write

import pretrain
from benchmarks import pretrain as benchmark
from config import GPT2Config

TINY = GPT2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
)


def test_the_learning_curves_agree(tmp_path, monkeypatch, capsys):
    work_in(monkeypatch, tmp_path)
    monkeypatch.setitem(pretrain.SHAPES, "mini", TINY)
    write("text.txt", "\n<|endoftext|>\n".join(VERSES * 100))
    words = ["--text", "text.txt", "--valid", "text.txt", "--block", "32", "--out", "r/p.json"]
    words += ["--steps", "12", "--points", "4", "--repeats", "1", "--uncommitted"]
    call_main(monkeypatch, "benchmarks.pretrain", *words)
    results = json.loads((tmp_path / "r" / "p.json").read_text(encoding="utf-8"))
    ours, theirs = results["curves"]["ours"], results["curves"]["transformers"]
    assert len(ours) == 4 and ours[0] - ours[-1] > 0.1
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert benchmark.table(results) in capsys.readouterr().out
    assert (tmp_path / "r" / "p.png").read_bytes().startswith(b"\x89PNG")
