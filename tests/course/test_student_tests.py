"""The tests that students get: each passes when its blank is filled, and names a mistake."""

import os
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from children import in_child

from course.handout.blanks import BLANKS
from course.handout.starter import write_starter
from engine.files import ROOT

pytestmark = pytest.mark.slow  # a process each


def is_ours(path: str) -> bool:
    return Path(path).resolve().is_relative_to(ROOT) and "site-packages" not in path


def forget_ours() -> None:
    """None of this repository's modules is loaded, or can be."""
    sys.path[:] = [path for path in sys.path if not is_ours(path)]
    for name, module in list(sys.modules.items()):
        if is_ours(getattr(module, "__file__", None) or "/"):
            del sys.modules[name]


def run_tests(folder: Path, *words: str) -> dict[tuple[str, str], str]:
    """(test file, test) -> "" if it passed, else the first line of its error."""
    report = folder.with_suffix(".xml")

    def run() -> None:
        os.chdir(folder)
        forget_ours()
        pytest.main(["-p", "no:cacheprovider", "--tb=line", f"--junitxml={report}", *words])

    report.unlink(missing_ok=True)
    in_child(run)
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        wrong = [part.get("message", "") for part in case if part.tag in ("failure", "error")]
        file = case.get("classname").rpartition(".")[2]
        found[f"{file}.py", case.get("name")] = wrong[0] if wrong else ""
    return found


@pytest.mark.parametrize("filled", range(len(BLANKS) + 1))
def test_the_tests_of_what_is_filled_pass_and_the_others_say_what_is_to_be_written(
    tmp_path, filled
):
    write_starter(ROOT, tmp_path / "starter", BLANKS[filled:])
    outcomes = run_tests(tmp_path / "starter")
    assert Counter(file for file, _ in outcomes).keys() == {blank.test for blank in BLANKS}
    done = {blank.test for blank in BLANKS[:filled]}
    unexpected = {
        test: message
        for (test, name), message in outcomes.items()
        if (message != "" if test in done else not message.startswith("NotImplementedError"))
    }
    assert unexpected == {}


MISTAKES = [  # test file, file, what stands there, what a student might write, words of the error
    (1, "attention", " / math.sqrt(query.shape[-1])", "", "divide by the square root"),
    (1, "attention", "diagonal=s - t + 1", "diagonal=s - t", "averages the values 0 to i"),
    (1, "attention", "diagonal=s - t + 1", "diagonal=1", "shift the diagonal"),
    (1, "attention", "masked_fill(future, torch", "masked_fill(future & False, torch", "averages"),
    (1, "attention", "scores = scores + padding_mask", "pass", "add padding_mask"),
    (1, "attention", "scores + padding_mask",
     "scores.masked_fill(future | (padding_mask < 0), -torch.inf)", "Add padding_mask as it is"),
    (1, "attention", "F.dropout(scores.softmax(dim=-1), dropout)", "scores.softmax(-1)", "weights"),
    (2, "attention", '"b h t k -> b t (h k)"', '"b h t k -> b t (k h)"', "move the heads"),
    (2, "attention", "self.attend(query, key,", "self.attend(key, query,", "order is query"),
    (2, "attention", " if self.training else 0.0", "", "In evaluation nothing is dropped"),
    (3, "gpt2_layer", "return input + dropout(dense_layer(output))",
     "return dropout(input + dense_layer(output))", "not the sum"),
    (3, "gpt2_layer", "dropout(dense_layer(output))", "dense_layer(dropout(output))",
     "comes after it"),
    (4, "gpt2_layer", "self.self_attention(self.attention_layer_norm(hidden_states)",
     "self.self_attention((hidden_states)", "does not use its attention_layer_norm"),
    (4, "gpt2_layer", "self.add(hidden_states, expanded,", "self.add(expanded, expanded,", None),
    (4, "gpt2_layer", "interm_dense(self.out_layer_norm(hidden_states))",
     "interm_dense(self.out_layer_norm(attended))", "the sum that the first one left"),
    (5, "gpt2", "torch.arange(t, ", "torch.arange(1, t + 1, ", "positions count from 0"),
    (5, "gpt2", "if positions is None:", "if True:", "use them where they are given"),
    (6, "gpt2", "@ self.word_embedding.weight.T", "@ self.word_embedding.weight.detach().T", None),
    (7, "optimizer", "math.sqrt(1 - beta2 ** state", "(1 - beta2 ** state", "first step"),
    (7, "optimizer", "exp_avg_sq.sqrt().add_(eps)", "exp_avg_sq.add(eps).sqrt()", "Epsilon"),
    (7, "optimizer", 'if group["correct_bias"]:', "if True:", "correct_bias=False"),
    (7, "optimizer", 'decay = lr * group["weight_decay"]', 'decay = group["weight_decay"]', "1.9"),
    (9, "classifier", "self.sentiment_head(self.dropout(features))",
     "self.sentiment_head(self.dropout(features)).softmax(-1)", "no softmax"),
    (10, "classifier", '(input_ids, attention_mask)["last_token"]',
     '(input_ids, attention_mask)["last_hidden_state"][:, -1]', "last real token"),
    (12, "paraphrase_detection", "[self.answer_tokens])", "[self.answer_tokens.flip(0)])",
     "Column 0"),
    (14, "sampling", "cumsum(dim=-1) - probabilities", "cumsum(dim=-1)", "last to stay"),
    (14, "sampling", "dropped.scatter(1, order, dropped)", "dropped", "those of the vocabulary"),
    (15, "sampling", "logits.float() / temperature", "logits.float()", "Divide the logits"),
    (15, "sampling", "keep_top_k(logits.float() / temperature, top_k)",
     "(logits.float() / temperature)", "two likeliest"),
]  # fmt: skip
PLACES = {Path(blank.file).stem: blank.file for blank in BLANKS}


@pytest.fixture(scope="module")
def solution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students") / "solution"
    write_starter(ROOT, folder, ())
    return folder


@pytest.mark.parametrize("number, stem, right, wrong, words", MISTAKES)
def test_a_mistake_is_told_in_words(solution, number, stem, right, wrong, words):
    path = solution / PLACES[stem]
    source = path.read_text(encoding="utf-8")
    assert right in source
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    try:
        outcomes = run_tests(solution, f"tests/{BLANKS[number - 1].test}")
    finally:
        path.write_text(source, encoding="utf-8")
    messages = [message for message in outcomes.values() if message]
    assert messages, "no test noticed"
    assert words is None or any(words in message for message in messages), messages
