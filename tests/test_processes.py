"""Programs as processes: Ctrl-C, terminals that show few letters, wrong flags, full memory."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from course_files import write_course, write_model
from slow import slow_unless

from engine import errors
from engine.errors import InputError, Parser, command
from engine.files import ROOT

PROGRAMS = sorted(
    path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
NAMES_OF_MODULES = "import time:"  # how the lines of -X importtime begin


def start(program: str, *words, cwd=ROOT, options=(), **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *options, str(ROOT / program), *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


# -- Ctrl-C ------------------------------------------------------------------------------------

HEAVY = ["classifier.py", "paraphrase_detection.py", "pretrain.py", "sanity_check.py"]
MOMENTS = [
    "engine.errors",
    "numpy._core",
    "torch.types",
    "torch.nn.modules",
    "torch.utils.data",
    "tqdm",
]


@pytest.mark.parametrize(
    "program, moment",
    slow_unless(lambda case: case[0] == "classifier.py", [(p, m) for p in HEAVY for m in MOMENTS]),
)
def test_ctrl_c_while_a_program_imports_is_one_line(program, moment):
    """Python names each module when its import is done: then the signal is sent."""
    said = []
    with start(program, "--help", options=["-X", "importtime"]) as process:
        for line in process.stderr:
            if not line.startswith(NAMES_OF_MODULES):
                said.append(line)
            elif line.split("|")[-1].strip().startswith(moment) and process.poll() is None:
                process.send_signal(signal.SIGINT)
                break
        said += [line for line in process.stderr if not line.startswith(NAMES_OF_MODULES)]
    assert (process.returncode, said) == (130, ["interrupted: nothing was begun\n"])


# -- terminals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_shown_where_few_letters_can_be(program):
    with start(program, "--help", **ASCII) as process:
        shown, said = process.communicate()
    assert (process.returncode, said) == (0, "") and shown.startswith("usage: ")
    assert shown.isascii()


def test_a_run_ends_well_though_the_terminal_cannot_show_its_folder(tmp_path):
    data, model = write_course(tmp_path / "Dätén"), write_model(tmp_path / "größe")
    words = ["--data_dir", data, "--model_size", model, "--dataset", "sst", "--epochs", "1"]
    with start("classifier.py", *words, cwd=tmp_path, PYTHONIOENCODING="ascii") as process:
        shown, said = process.communicate()
    assert process.returncode == 0, said
    assert "last-linear-layer-gr??e-" in shown
    assert len(list(tmp_path.glob("runs/sst-last-linear-layer-größe-*/best.safetensors"))) == 1


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_flag_is_one_line(program):
    with start(program, "--no-such-flag") as process:
        shown, said = process.communicate()
    assert (process.returncode, shown, said.count("\n")) == (2, "", 1)
    assert said.startswith("error: ") and said.endswith("see --help\n")


def test_a_wrong_value_names_its_flag():
    parser = Parser()
    parser.add_argument("--lr", type=float)
    with pytest.raises(InputError, match=r"^argument --lr: invalid float value: 'x': see --help"):
        parser.parse_args(["--lr", "x"])


def test_full_memory_is_one_line_wherever_it_happens(capsys):
    @command
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: out of memory: give a smaller --batch_size")


LEAVE = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from engine.errors import leave

print("here", flush=True)
leave("error: a line", 2)
"""


def test_another_process_than_the_first_leaves_quietly_when_torchrun_ends_it():
    with subprocess.Popen(
        [sys.executable, "-c", LEAVE],
        env=os.environ | {"RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "here\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it waits for the first one
        process.terminate()
        assert process.stderr.read() == ""
    assert process.returncode == 2


def test_a_process_with_an_error_of_its_own_says_it_after_a_while(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(errors, "PATIENCE", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        errors.leave("error: this one's GPU is missing", 2)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: this one's GPU is missing\n"
