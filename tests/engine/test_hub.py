"""Models are found by size, by folder and in the hub's cache; what is not found is explained."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from course_files import write_model

from config import GPT2Config
from engine.errors import InputError
from engine.files import ROOT
from engine.hub import load_gpt2, load_tokenizer
from models.gpt2 import GPT2Model

TINY = GPT2Config(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)


def write_checkpoint(folder) -> None:
    GPT2Model(TINY).save_pretrained(folder)


def test_without_network_one_message_names_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("engine.hub.hub_resolves", lambda: False)
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
    monkeypatch.setattr("engine.hub.hub_resolves", lambda: False)
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


# -- what a folder's files must not ask for ----------------------------------------------------


@pytest.mark.parametrize(
    "values, said",
    [
        ({"resid_pdrop": 5}, "resid_pdrop is 5, expected a number from 0 to 1"),
        ({"resid_pdrop": "x"}, "resid_pdrop is 'x', expected a number from 0 to 1"),
        ({"layer_norm_epsilon": "a"}, "layer_norm_epsilon is 'a', expected a number above 0"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
        ({"initializer_range": None}, "initializer_range is None, expected a number above 0"),
        ({"n_layer": 1e9}, "n_layer is 1000000000.0, expected a whole number from 1 on"),
        ({"n_layer": True}, "n_layer is True, expected a whole number from 1 on"),
        ({"n_layer": 10**9}, "parameters, but all weight files together have"),
        ({"num_hidden_layers": 10**9, "n_layer": None}, "n_layer is None"),
        ({"n_inner": -1}, "n_inner is -1, expected a whole number from 1 on, or null"),
        ({"n_head": 3}, "n_embd is 32, expected a multiple of n_head, 3"),
    ],
)
def test_a_config_with_an_impossible_number_is_refused(values, said, tmp_path):
    write_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load_gpt2(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["null", "[]", "5", '{"a":' * 50_000, "[" * 50_000])
def test_a_config_that_is_no_object_is_refused(text, tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: "):
        load_gpt2(str(tmp_path))


@pytest.mark.parametrize("mapped", [False, True])
def test_weights_that_are_not_finite_are_refused(mapped, tmp_path):
    model = GPT2Model(TINY)
    model.final_layer_norm.bias.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    said = r"1 tensors hold NaN or infinity, the first: final_layer_norm\.bias"
    with pytest.raises(InputError, match=said):
        load_gpt2(str(tmp_path), mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("shard", [5, None, [], "", "../../etc/passwd", {"a": 1}])
def test_a_shard_index_that_names_no_file_is_refused(shard, mapped, tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        load_gpt2(str(tmp_path), mapped=mapped)


@pytest.mark.parametrize("text", ["null", "5", "[]", "[" * 50_000, '{"model": null}'])
def test_a_tokenizer_file_that_is_no_tokenizer_is_refused(text, tmp_path):
    write_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_whose_merges_are_no_tokens_is_refused(tmp_path):
    write_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["vocab"] = {"a": 0}
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be read \(Exception .*out of vocabulary"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    write_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if name != "eos_token"}
    path.write_text(json.dumps(settings | {"eos_token": None}), encoding="utf-8")
    for name in ("special_tokens_map.json", "generation_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="the tokenizer has no end token"):
        load_tokenizer(str(tmp_path))
