"""A trained model is tried on one's own texts, from the command line of its task."""

import io
import json
import os

import pytest
import torch
from course_files import call_main, work_in, write, write_model
from task_checkpoints import KINDS, build, save

from engine.trying import BAR, bar, say_aloud
from programs.tasks import TASKS

PROMPT = "the rose is red\nmy love burns\nnights grow long\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run of each task, and no data."""
    work_in(monkeypatch, tmp_path)
    write_model(tmp_path / "model")
    for kind in KINDS:
        model, settings = build(kind, "model")
        path = tmp_path / "runs" / f"{KINDS[kind][0].name}-x-1" / "best.safetensors"
        path.parent.mkdir(parents=True)
        save(path, kind, model, settings)
    return tmp_path


def stdin(monkeypatch, data: bytes) -> None:
    """Let the standard input hold these bytes; its own text is that of another encoding."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))


def answers(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("task, flag", [("sst", "--text"), ("paraphrase", "--pair")])
def test_the_probabilities_are_the_model_s(task, flag, place, monkeypatch, capsys):
    texts = ["the film was superb"] if flag == "--text" else ["the film", "the plot"]
    program = TASKS[task].command[0].removesuffix(".py")
    best = f"runs/{task}-x-1/best.safetensors"
    call_main(monkeypatch, program, "--checkpoint", best, flag, *texts, "--json")
    [answer] = answers(capsys)
    model, settings = TASKS[task].load(best)
    model.eval()
    row = next(TASKS[task].own_rows(settings.replace(text=texts, pair=[texts])))[1]
    tokenizer = TASKS["sonnet"].load("runs/sonnet-x-1/best.safetensors")[0].tokenizer
    [ids] = TASKS[task].tokens(tokenizer, [row], 64, where="", say=print)
    expected = model(torch.tensor([ids]), torch.ones(1, len(ids))).softmax(-1)[0]
    assert list(answer["probabilities"]) == list(TASKS[task].class_names)
    torch.testing.assert_close(
        torch.tensor(list(answer["probabilities"].values())), expected, rtol=0, atol=2e-6
    )
    assert answer["predicted"] == TASKS[task].class_names[int(expected.argmax())]
    assert "".join(answer["tokens"]) == tokenizer.decode(ids)


def test_the_newest_run_is_taken_and_named(place, monkeypatch, capsys):
    os.utime(place / "runs/cfimdb-x-1/best.safetensors", (2e9, 2e9))
    call_main(monkeypatch, "classifier", "--text", "a plain film")
    said = capsys.readouterr()
    assert "the model of runs/cfimdb-x-1/best.safetensors" in said.err
    lines = said.out.splitlines()
    assert lines[0] == "a plain film" and "negative" in lines[1] and "positive" in lines[2]
    assert sum(line.startswith("→") for line in lines) == 1
    call_main(monkeypatch, "classifier", "--dataset", "sst", "--text", "a plain film")
    assert "very negative" in capsys.readouterr().out


def test_lines_of_the_standard_input_are_texts(place, monkeypatch, capsys):
    stdin(monkeypatch, b"good film\n\n  poor pl\xc3\xb6t \r\n")
    call_main(monkeypatch, "classifier", "--dataset", "sst", "--text", "-", "--json")
    assert [answer["text"] for answer in answers(capsys)] == ["good film", "poor plöt"]


def test_a_terminal_gets_no_character_that_it_would_obey(place, monkeypatch, capsys):
    stdin(monkeypatch, b"a \x1b[31mred\x07 film\n")
    call_main(monkeypatch, "classifier", "--dataset", "sst", "--text", "-")
    printed = capsys.readouterr().out
    assert printed.startswith(r"a \x1b[31mred\x07 film") and printed.count(r"\x1b") == 2
    assert all(c.isprintable() or c == "\n" for c in printed)
    say_aloud("a line\nand \x1b another\n")
    assert capsys.readouterr().out == "a line\nand \\x1b another\n"


@pytest.mark.parametrize(
    "words, given, said",
    [
        (["classifier", "--text", "-"], b"ok\nbad \xff\n", "-, line 2: not UTF-8: byte 0xff"),
        (["classifier", "--text", "-"], b" \n\n", "--text -: the standard input is empty: give a"),
        (["sonnet_generation", "--prompt", "-"], b"a\nb \xff\n", "--prompt -, line 2: not UTF-8"),
        (["sonnet_generation", "--prompt", "-"], b"", "--prompt -: empty, expected the first"),
    ],
)
def test_what_the_standard_input_lacks_is_said(words, given, said, place, monkeypatch, capsys):
    stdin(monkeypatch, given)
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, *words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and said in error


def test_a_sonnet_that_is_interrupted_ends_its_line(place, monkeypatch, capsys):
    write("mine.txt", PROMPT)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.trying.complete", interrupted)
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "sonnet_generation", "--prompt", "mine.txt")
    said = capsys.readouterr()
    assert stop.value.code == 130 and said.out == "\n"
    assert said.err.splitlines()[-1] == "interrupted: nothing was being trained"


def test_samples_of_a_sonnet_are_printed_as_they_are_drawn(place, monkeypatch, capsys):
    write("mine.txt", PROMPT)
    words = ["--prompt", "mine.txt", "--n", "2", "--max_new_tokens", "6"]
    call_main(monkeypatch, "sonnet_generation", *words, "--json")
    first, second = answers(capsys)
    assert first["prompt"] == PROMPT and (first["seed"] + 1) == second["seed"]
    assert first["text"] != second["text"]
    call_main(monkeypatch, "sonnet_generation", *words)
    printed = capsys.readouterr().out
    assert printed == f"{first['text']}\n\n{second['text']}\n\n"


@pytest.mark.parametrize(
    "words, said",
    [
        (["classifier", "--text", "x", "--runs_dir", "none"], "none: no run of sst or cfimdb is"),
        (["sonnet_generation", "--prompt", "empty.txt"], "empty.txt: empty, expected the first"),
        (
            ["sonnet_generation", "--prompt", "gone.txt"],
            "gone.txt: No such file or directory: give",
        ),
        (
            ["classifier", "--checkpoint", "runs/sst-x-1", "--text", "x"],
            "runs/sst-x-1: a folder, expected a file: give its best.safetensors",
        ),
        (
            ["classifier", "--checkpoint", "runs/sonnet-x-1/best.safetensors", "--text", "x"],
            "a che",
        ),
        (["classifier", "--text", "a", "--text", " "], "--text ' ': empty: give a text, or - for"),
        (["classifier", "--text", "a\udcff"], r"--text a\udcff: not UTF-8"),
        (["paraphrase_detection", "--pair", "a", ""], "--pair '': empty: give a text"),
        (["paraphrase_detection", "--pair", "-", "b"], "--pair -: found -, expected a text"),
        (["sonnet_generation", "--n", "3"], "--n 3: of which prompt? give --prompt FILE too"),
        (["classifier", "--text", "a", "--max_length", "0"], "--max_length 0: expected at least 1"),
        (
            ["classifier", "--text", "a", "--extension", "lora"],
            "--extension with --text: nothing is trained: leave one out",
        ),
        (
            ["paraphrase_detection", "--checkpoint", "b.safetensors", "--resume"],
            "--resume with --checkpoint: nothing is trained: leave one out",
        ),
    ],
)
def test_what_cannot_be_tried_is_said_in_a_line(words, said, place, monkeypatch, capsys):
    write("empty.txt", "\n \n")
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, *words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and said in error


def test_a_bar_is_exact_to_an_eighth_of_a_character():
    assert bar(0.0) == "" and bar(1.0) == "█" * BAR
    assert bar(0.5 + 1 / (BAR * 8)) == "█" * (BAR // 2) + "▏"
