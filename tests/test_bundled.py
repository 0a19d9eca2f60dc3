"""gpt2-mini, the bundled checkpoint: small, whole, described truly, taken by every task."""

import json

import pytest
import torch
from course_files import call_main, work_in
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import sanity_check
from engine.corpus import END_OF_TEXT
from engine.files import ROOT
from engine.hub import BUNDLED, load_gpt2, load_tokenizer
from engine.records import read_sonnets

FOLDER = BUNDLED["gpt2-mini"]
TASKS = ["classifier", "paraphrase_detection", "sonnet_generation"]


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


def test_it_is_small_and_its_weights_are_float16():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20e6
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_it_has_the_promised_shape():
    config = load_gpt2("gpt2-mini").config
    assert (config.vocab_size, config.max_position_embeddings) == (8192, 1024)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1


def test_yes_and_no_are_one_token_each():
    tokenizer = load_tokenizer("gpt2-mini")
    assert len(tokenizer) == 8192 and tokenizer.eos_token == END_OF_TEXT
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in ("yes", "no"))
    text = "Shall I compare thee to a summer's day? ☃\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_transformers_loads_it_with_equal_hidden_states_and_logits():
    ours = load_gpt2("gpt2-mini").eval()
    theirs = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokens, mask = sanity_check.example_batch(8192)
    differences = sanity_check.largest_differences(ours, theirs, tokens, mask)
    assert max(differences.values()) < 1e-4


def test_it_has_learnt_english(facts):
    """Text of this project's own, in bits a byte: noise has 8, the words' frequencies over 2.2."""
    tokenizer, model = load_tokenizer("gpt2-mini"), load_gpt2("gpt2-mini").eval()
    text = (ROOT / "data" / "sample" / "README.md").read_text(encoding="utf-8")
    review = "I did not expect much of this film, but the actors are good and the story is moving."
    bits = []
    for words in (review, text):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(words)["input_ids"]]])
        with torch.no_grad():
            logits = model.hidden_state_to_token(model(ids)["last_hidden_state"])[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        bits.append(float(loss) / 0.6931 / len(words.encode()))
    assert bits[0] < 1.6 and bits[0] < bits[1]
    assert facts["bits_per_byte"] < 1.7


def test_its_card_says_what_the_log_says(facts):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = (FOLDER / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    best = min(json.loads(line)["val_loss"] for line in lines)
    assert best == pytest.approx(facts["val_loss"], rel=0.03)  # a part of validation, and all of it
    for figure in (
        f"{facts['parameters']:,}",
        f"{facts['steps']:,}",
        f"{facts['tokens']:,}",
        f"{facts['val_loss']:.3f}",
        f"{facts['bits_per_byte']:.3f}",
        facts["hardware"],
    ):
        assert figure in card, figure
    for word in ("Licence", "Limits", "CFIMDB", "SST"):
        assert word in card


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_it_by_name(task, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    words = ["--model_size", "gpt2-mini", "--data_dir", str(ROOT / "data" / "sample")]
    words += ["--limit", "4", "--epochs", "1"]
    words += ["--max_new_tokens", "4"] if task == "sonnet_generation" else []
    call_main(monkeypatch, task, *words)
    outputs = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert len(outputs) == {"classifier": 4}.get(task, 2)
    if task == "sonnet_generation":
        assert len(read_sonnets(tmp_path / "predictions" / "generated_sonnets.limit-4.txt")) == 4
