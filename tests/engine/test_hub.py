"""Models are found by size, by folder and in the hub's cache; what is not found is explained."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config import GPT2Config
from engine.errors import InputError
from engine.files import ROOT
from engine.hub import load_gpt2
from models.gpt2 import GPT2Model

TINY = GPT2Config(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)


def write_checkpoint(folder) -> None:
    GPT2Model(TINY).save_pretrained(folder)


def test_without_network_one_message_names_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("engine.hub._hub_resolves", lambda: False)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_gpt2("gpt2")
    assert time.monotonic() - start < 5
    said = str(caught.value)
    for part in ("gpt2", "(1)", "internet", "(2)", "HF_HOME", "(3)", "--model_size", "config.json"):
        assert part in said
    assert said.index("--model_size gpt2-mini, which is bundled, works at once") < said.index("(1)")


@pytest.mark.parametrize(
    "word, meant",
    [("gpt-mini", "gpt2-mini"), ("gpt2-meduim", "gpt2-medium"), ("gpt2_xl", "gpt2-xl")],
)
def test_a_mistyped_size_is_answered_by_the_one_that_was_meant(word, meant, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("engine.hub._hub_resolves", lambda: False)
    with pytest.raises(InputError, match=rf"^{word}: did you mean {meant}\b"):
        load_gpt2(word)


def test_a_folder_that_hides_a_size_and_is_no_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    with pytest.raises(InputError, match=rf"the folder {tmp_path}/gpt2 hides the model"):
        load_gpt2("gpt2")
    write_checkpoint("gpt2")
    assert load_gpt2("gpt2").config == TINY


NO_NETWORK = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("the network was asked")

socket.getaddrinfo = socket.socket.connect = refuse
from engine.hub import load_gpt2
print(load_gpt2(sys.argv[1]).config.hidden_size)
"""


@pytest.mark.parametrize(
    "cached, asked",
    [
        ("gpt2", "gpt2"),
        ("openai-community/gpt2", "gpt2"),
        ("gpt2-medium", "openai-community/gpt2-medium"),
    ],
)
def test_the_cache_of_the_hub_is_used_without_network(cached, asked, tmp_path):
    repository = tmp_path / "hub" / f"models--{cached.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc123"
    write_checkpoint(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    run = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, asked],
        cwd=ROOT,
        env=environment | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "32\n", run.stderr
