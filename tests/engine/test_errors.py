"""What a person reads of an error: one printable line of bounded length, and exit code 2."""

import subprocess
import sys

import pytest
import torch

from engine.errors import EXCERPT, InputError, Parser, command, excerpt, quoted
from engine.files import ROOT


def said(action, capsys) -> str:
    """The line on stderr of a program whose main is this action."""
    with pytest.raises(SystemExit) as stop:
        command(action)()
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def raising(error: Exception):
    def main():
        raise error

    return main


def test_a_short_text_is_shown_as_it_is_on_one_line():
    assert excerpt("a\tb\n c") == "a b c"
    assert quoted("a\tb") == r"'a\tb'"


def test_a_long_text_is_cut_and_what_is_left_out_is_counted():
    assert excerpt("x" * 500_000) == "x" * EXCERPT + "… (499,700 more characters)"


def test_characters_that_a_terminal_would_obey_are_written_out():
    assert excerpt("\x1b[31mred\x07\u202e") == r"\x1b[31mred\x07\u202e"


def test_a_message_stays_one_line_whatever_it_quotes(capsys):
    message = said(raising(InputError("a.csv: found \x1b[2J\nx" + "y" * 100_000)), capsys)
    assert len(message) < 2000 and "\x1b" not in message and "more characters)" in message


@pytest.mark.parametrize(
    "main",
    [
        lambda: torch.empty(2**50),
        raising(MemoryError()),
        raising(torch.OutOfMemoryError("CUDA out of memory")),
    ],
    ids=["a CPU's tensor", "Python", "a GPU"],
)
def test_memory_that_runs_out_is_said_with_what_to_do(main, capsys):
    assert "out of memory: give a smaller --batch_size" in said(main, capsys)


def test_another_runtime_error_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="a defect"):
        command(raising(RuntimeError("a defect")))()


@pytest.mark.parametrize(
    "kind, word", [(int, "9" * 400), (int, "9" * 5000), (int, "-" + "9" * 400), (float, "1e308")]
)
def test_a_number_that_no_tensor_holds_is_refused(kind, word):
    parser = Parser()
    parser.add_argument("--value", type=kind)
    with pytest.raises(InputError, match="argument --value: ") as caught:
        parser.parse_args([f"--value={word}"])
    assert len(excerpt(str(caught.value))) < 400


@pytest.mark.parametrize("kind, word", [(int, "-3"), (int, str(2**62)), (float, "1e-300")])
def test_other_numbers_are_taken(kind, word):
    parser = Parser()
    parser.add_argument("--value", type=kind)
    assert parser.parse_args([f"--value={word}"]).value == kind(word)


@pytest.mark.parametrize("flags", [["--lr", "1e308"], ["--limit", "9" * 400]])
def test_a_task_says_so_in_one_line(flags):
    run = subprocess.run(
        [sys.executable, "classifier.py", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stderr.startswith(f"error: argument {flags[0]}: ")
    assert run.stderr.count("\n") == 1 and len(run.stderr) < 400
