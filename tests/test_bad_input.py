"""What people get wrong ends in one line that says where and what to do: exit code 2, no traceback.

And costs them nothing: it is said before training, and the predictions of before keep their bytes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bad_input_cases import CASES, CONFIG, TASKS, TOKENIZER, Case
from course_files import call_main, no_training, work_in, write, write_course, write_model

from classifier import OUTPUT_NAMES
from engine.checkpoint import save_tree
from engine.files import ROOT
from engine.hub import load_tokenizer

OLD = b"id, Predicted_Sentiment \nold, 1 \n"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_course(folder / "data")
    write_model(folder / "model")
    return folder


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    """A folder with data/, model/ and the predictions of an earlier run, to work in."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    for prefix in OUTPUT_NAMES.values():
        for name in ("sst-dev", "sst-test"):
            path = tmp_path / "predictions" / f"{prefix}-{name}-out.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(OLD)
    for name in ("para-dev-output.csv", "para-test-output.csv", "generated_sonnets.txt"):
        (tmp_path / "predictions" / name).write_bytes(OLD)
    write(tmp_path / "a-file", "neither a folder nor a checkpoint" * 9)
    write(tmp_path / "empty-file", "")
    torch.save({"args": 1}, tmp_path / "pickle.pt")
    work_in(monkeypatch, tmp_path)
    monkeypatch.setattr("engine.hub.hub_resolves", lambda: False)
    return tmp_path


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in (folder / "predictions").rglob("*")}


def command_line(case: Case) -> list[str]:
    program = TASKS[case.program]
    flags = ["--data_dir", "data", "--model_size", "model", "--epochs", "1"]
    return [
        program,
        *flags,
        *(["--dataset", "sst"] if program == "classifier" else []),
        *case.flags,
    ]


def check_output(case: Case, code: int, error: str) -> None:
    assert code == 2
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
    for part in case.said:
        assert part in error, f"{part!r} is not in {error!r}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_line_says_what_is_wrong_and_nothing_is_lost(case, place, monkeypatch, capsys):
    if case.damage:
        case.damage()
    before = snapshot(place)
    program, *words = command_line(case)
    if "--resume" not in words:
        monkeypatch.setattr("engine.task.fit", checked_folder_then_no_training)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("engine.machine_flags.has_bf16_units", lambda device: device != "cpu")
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, program, *words)
    check_output(case, stop.value.code, capsys.readouterr().err)
    assert snapshot(place) == before


def checked_folder_then_no_training(*_, folder, options, **__):
    """The first thing that `fit` does, and then nothing more."""
    folder.start(options.resume)
    no_training()


@pytest.mark.parametrize("name", ["weights truncated", "pair's label", "a sonnet without text"])
def test_the_real_command_says_it_in_one_line(name, place):
    """In a process of its own: what libraries write to stderr counts, too."""
    [case] = [case for case in CASES if case.name == name]
    if case.damage:
        case.damage()
    before = snapshot(place)
    program, *words = command_line(case)
    run = subprocess.run(
        [sys.executable, str(ROOT / f"{program}.py"), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    check_output(case, run.returncode, run.stderr)
    assert "Traceback" not in run.stdout + run.stderr
    assert snapshot(place) == before


# -- checkpoints of runs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(originals, tmp_path_factory):
    """The best.safetensors of a short run of each program."""
    folder, found = tmp_path_factory.mktemp("trained"), {}
    shutil.copytree(originals, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        for key in TASKS:
            program, *words = command_line(Case("", key, ()))
            extra = ["--max_new_tokens", "2"] if key == "s" else []
            call_main(monkeypatch, program, *words, *extra, "--runs_dir", key)
            [found[key]] = (folder / key).glob("*/best.safetensors")
    return found


@pytest.mark.parametrize("other", TASKS)
@pytest.mark.parametrize("key", TASKS)
def test_a_checkpoint_of_another_task_is_refused(key, other, trained, place, monkeypatch, capsys):
    names = {"c": "sst", "p": "paraphrase", "s": "sonnet"}
    flags = ("--checkpoint", str(trained[other]))
    if key == other == "c":
        flags = (*flags, "--dataset", "cfimdb")
        names[key] = "cfimdb"
    elif key == other:
        return
    said = (str(trained[other]), repr({"c": "sst"}.get(other, names[other])), repr(names[key]))
    refuse(Case("", key, said, flags), place, monkeypatch, capsys)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
@pytest.mark.parametrize("key", TASKS)
def test_a_truncated_checkpoint_is_refused(key, share, trained, place, monkeypatch, capsys):
    whole = trained[key].read_bytes()
    Path("cut.safetensors").write_bytes(whole[: int(share * len(whole))])
    case = Case("", key, ("cut.safetensors", "train again"), ("--checkpoint", "cut.safetensors"))
    refuse(case, place, monkeypatch, capsys)


def test_the_state_of_a_run_is_not_taken_for_its_best_epoch(trained, place, monkeypatch, capsys):
    last = str(trained["s"].with_name("last.safetensors"))
    case = Case("", "s", (last, "best.safetensors"), ("--checkpoint", last))
    refuse(case, place, monkeypatch, capsys)


def test_a_checkpoint_whose_backbone_is_gone_names_it(trained, place, monkeypatch, capsys):
    """A frozen GPT-2 is not stored: the folder that it came from is needed again."""
    shutil.rmtree("model")
    case = Case("", "c", ("model", "neither a folder"), ("--checkpoint", str(trained["c"])))
    refuse(case, place, monkeypatch, capsys)


def test_a_checkpoint_of_another_size_of_model_is_refused(trained, place, monkeypatch, capsys):
    shutil.rmtree("model")
    write_model("model", hidden_size=16)
    case = Case("", "c", (str(trained["c"]), "another model"), ("--checkpoint", str(trained["c"])))
    refuse(case, place, monkeypatch, capsys)


def test_a_checkpoint_without_content_is_refused(place, monkeypatch, capsys):
    save_tree("empty.safetensors", {"task": "sst"})
    case = Case("", "c", ("empty.safetensors",), ("--checkpoint", "empty.safetensors"))
    refuse(case, place, monkeypatch, capsys)


def refuse(case: Case, place, monkeypatch, capsys) -> None:
    before = snapshot(place)
    program, *words = command_line(case)
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, program, *words)
    check_output(case, stop.value.code, capsys.readouterr().err)
    assert snapshot(place) == before


# -- tokenizers, readers -----------------------------------------------------------------------


def byte_tokenizer(folder, *, extra: str = "") -> None:
    """A tokenizer that knows single bytes only, saved into a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["<|endoftext|>", *letters])}
    merges = [tuple(extra)] if extra else []
    bpe = Tokenizer(models.BPE({**vocabulary, **({extra: 257} if extra else {})}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)


@pytest.mark.parametrize("extra", ["", "no"])
def test_a_tokenizer_that_cuts_yes_or_no_cannot_answer(place, extra, monkeypatch, capsys):
    byte_tokenizer("model", extra=extra)
    assert len(load_tokenizer("model")("yes")["input_ids"]) == 3
    case = Case("", "p", ('"no" and "yes"', "one token"))
    refuse(case, place, monkeypatch, capsys)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(place, monkeypatch, capsys):
    """The files of two models in one folder: else an index error in the middle of training."""
    shutil.copy(TOKENIZER, "large.json")
    large = len(load_tokenizer("model"))
    write_model("model", texts=["a"])
    small = len(load_tokenizer("model"))
    assert large > small
    shutil.move("large.json", TOKENIZER)
    refuse(Case("", "c", ("model", str(large), str(small))), place, monkeypatch, capsys)


def test_weights_that_are_not_as_the_config_says_are_refused(place, monkeypatch, capsys):
    config = json.loads(Path(CONFIG).read_text()) | {"n_positions": 64}
    Path(CONFIG).write_text(json.dumps(config))
    said = ("model", "config.json", "wpe.weight has another shape")
    refuse(Case("", "c", said), place, monkeypatch, capsys)


def test_an_interrupted_program_says_so_in_a_line_and_exits_as_shells_expect(
    place, monkeypatch, capsys
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.task.fit", interrupted)
    program, *words = command_line(Case("", "c", ()))
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, program, *words)
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().err


def test_good_input_is_accepted(place, monkeypatch, capsys):
    """The cases above fail for what is wrong in them: without it all programs run."""
    before = snapshot(place)
    for key in TASKS:
        program, *words = command_line(Case("", key, ()))
        extra = ["--max_new_tokens", "2"] if key == "s" else []
        call_main(monkeypatch, program, *words, *extra)
    assert capsys.readouterr().err == ""
    after = snapshot(place)
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {
        "pretrain-sst-dev-out.csv",
        "pretrain-sst-test-out.csv",
        "para-dev-output.csv",
        "para-test-output.csv",
        "generated_sonnets.txt",
        "generated_sonnets_dev.txt",
    }
