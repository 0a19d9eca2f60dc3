"""Search: its space, the same trials after any interruption, and never a look at test files."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from children import in_child
from course_files import call_main, work_in, write, write_course, write_model
from tiny_run import run_path

from engine.database_url import masked
from engine.errors import InputError
from programs.search import search
from programs.search import trial as search_trial
from programs.search.space import Probe, Values, parse_space, probes, words_of

# -- the space -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8,16,32", Values(choices=("8", "16", "32"))),
        ("constant", Values(choices=("constant",))),
        ("0..4", Values(low=0, high=4, whole=True)),
        ("0..0.5", Values(low=0, high=0.5)),
        ("log:1e-5..1e-3", Values(low=1e-5, high=1e-3, log=True)),
        ("log:1e-5:1e-3", Values(low=1e-5, high=1e-3, log=True)),
        ("log:4..64", Values(low=4, high=64, log=True, whole=True)),
        ("-1..1.0", Values(low=-1, high=1)),
    ],
)
def test_values_are_read(text, expected):
    [flag] = parse_space([f"lr={text}"])
    assert flag.name == "lr" and flag.values == expected


class Noted:
    """A trial that notes what is asked of it, and answers with the last choice or the low end."""

    def __init__(self):
        self.asked = []

    def suggest_categorical(self, name, choices):
        self.asked.append((name, *choices))
        return choices[-1]

    def suggest_int(self, name, low, high, *, log=False):
        self.asked.append((name, low, high, log))
        return low

    suggest_float = suggest_int


def test_each_flag_and_option_is_asked_for_by_its_name():
    space = parse_space(["--lr=log:0.00012345..1", "bf16=off,on", "n=2..5", "fine-tune-mode=a,b"])
    trial = Noted()
    words = words_of(space, trial)
    assert words == ["--lr", "0.000123", "--bf16", "--n", "2", "--fine-tune-mode", "b"]
    assert trial.asked[0] == ("lr", 0.00012345, 1.0, True) and trial.asked[2] == ("n", 2, 5, False)
    assert words_of(parse_space(["bf16=on,off"]), Noted()) == []


def test_options_are_asked_for_only_of_the_extension_that_was_drawn():
    entry = "extension=none|muon|lora:rank=4..64,alpha=16,32,dora=true"
    trial = Noted()
    words = words_of(parse_space([entry, "extension=ema:decay=0.9,0.99"]), trial)
    assert words == [
        "--extension",
        "lora:rank=4,alpha=32,dora=true",
        "--extension",
        "ema:decay=0.99",
    ]
    names = ["extension", "extension.lora.rank", "extension.lora.alpha", "extension.lora.dora"]
    assert [asked[0] for asked in trial.asked] == [*names, "extension2", "extension2.ema.decay"]
    assert words_of(parse_space([entry]), Probe(0)) == []
    assert words_of(parse_space([entry]), Probe(1)) == ["--extension", "muon"]


def test_probes_bring_every_choice():
    space = parse_space(["a=1..3", "b=1,2,3,4", "extension=none|x:o=1,2,3,4,5"])
    found = {tuple(words_of(space, probe)) for probe in probes(space)}
    words = {word for row in found for word in row}
    assert {"1", "3", "4", "x:o=5"} <= words and any("--extension" not in row for row in found)


@pytest.mark.parametrize(
    "entries, said",
    [
        (["lr"], "'lr': expected NAME=VALUES"),
        (["=1"], "'=1': expected NAME=VALUES"),
        (["lr="], "expected NAME=VALUES"),
        (["lr=1,1"], "a choice is empty or stands twice"),
        (["lr=1,,2"], "a choice is empty or stands twice"),
        (["lr=a..b"], "'a..b': expected A,B,C or LOW..HIGH"),
        (["lr=1..2..3"], "'1..2..3': expected"),
        (["lr=2..1"], "from 2 to 1: expected the smaller end first"),
        (["lr=log:0..1"], "and above 0"),
        (["lr=1..inf"], "the smaller end first"),
        (["lr=1", "lr=2"], "lr stands twice"),
        (["extension=lora|lora"], "extension 'lora' is empty or stands twice"),
        (["extension=none|"], "extension '' is empty"),
        (["extension=lora:4..64"], "'4..64', expected OPTION=VALUES"),
    ],
)
def test_a_space_that_is_none_is_refused(entries, said):
    with pytest.raises(InputError) as refused:
        parse_space(entries)
    assert said in str(refused.value) and repr(entries[-1]) in str(refused.value)


# -- searches --------------------------------------------------------------------------------------

FAKE = """
import argparse, json, math, os, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--runs_dir", type=Path)
args, _ = parser.parse_known_args()
if args.batch_size == 13:
    sys.exit("error: 13 rows bring bad luck")
run = args.runs_dir / "run"
run.mkdir(parents=True)
(run / "best.safetensors").write_text("weights")
lines = []
for epoch in range(args.epochs):
    figure = 1 - abs(math.log10(args.lr) + 3) / 5 - 0.001 * args.batch_size
    record = {"epoch": epoch, "dev_acc": figure - 0.01 * abs(epoch - 1), "dev_f1": 0.5}
    lines.append(json.dumps(record) + "\\n")
    new = run / "new"
    new.write_text("".join(lines))
    os.replace(new, run / "metrics.jsonl")
    time.sleep(float(os.environ.get("EPOCH_SECONDS", 0)))
"""
SPACE = ["--space", "lr=log:1e-6..1e-1", "batch_size=8,16"]
TASK = ["--", "classifier.py", "--dataset", "sst", "--data_dir", "data", "--epochs", "3"]


def needs_optuna():
    return pytest.importorskip("optuna")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """In the task's place a program that is quick, is best in epoch 1, and likes a rate of 1e-3."""
    needs_optuna()
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=10)
    write("programs/classifier.py", FAKE)
    monkeypatch.setattr(search_trial, "FOLDER", tmp_path / "programs")
    monkeypatch.setattr(search_trial, "POLL", 0.01)
    monkeypatch.setattr(search, "STARTUP", 3)
    return tmp_path


def run(monkeypatch, *words) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["search", *map(str, words)])
    try:
        search.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def study(name: str = "*"):
    """The one study in runs/search."""
    optuna = needs_optuna()
    path = run_path("runs/search", f"{name}.db")
    return optuna.load_study(study_name=path.stem, storage=f"sqlite:///{path}")


def drawn(found) -> list[tuple]:
    """Values and figure of each trial that ended, in the order of their ends."""
    trials = sorted(search.ended(found), key=lambda trial: trial.datetime_complete)
    return [(trial.params, trial.value, trial.state.name) for trial in trials]


def test_it_finds_what_the_task_likes_and_prints_the_command(place, monkeypatch, capsys):
    run(monkeypatch, "--trials", "15", *SPACE, "--pruner", "none", *TASK)
    found, out = study(), capsys.readouterr().out
    assert len(found.trials) == 15 and 1e-4 < found.best_params["lr"] < 1e-2
    rate = f"{found.best_params['lr']:.3g}"
    *_, best, importance, last = out.splitlines()
    assert f"best of 15 trials: {found.best_trial.number}, dev_acc {found.best_value:.4f}" == best
    size = found.best_params["batch_size"]
    words = " ".join([*TASK[1:], "--lr", rate, "--batch_size", size])
    assert last == f"next: python {words}"
    shares = dict(part.split() for part in importance[12:].split(";")[0].split(", "))
    assert float(shares["lr"]) > 0.7 and sum(map(float, shares.values())) == pytest.approx(
        1, abs=0.02
    )
    assert run_path("runs/search", "*/importance.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("runs").rglob("*.safetensors")) and not list(Path("runs").rglob("data-*"))
    assert not Path("predictions").exists()


def test_a_trial_s_figure_is_its_best_epoch_s(place, monkeypatch):
    run(monkeypatch, "--trials", "1", "--space", "lr=1e-3", *TASK)
    assert study().best_value == pytest.approx(1 - 0.008)
    record = study().trials[0].intermediate_values
    assert [record[epoch] for epoch in range(3)] == pytest.approx([0.982, 0.992, 0.982])


def test_the_seed_decides_the_trials(place, monkeypatch):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(monkeypatch, "--trials", "4", "--study", name, "--seed", seed, *SPACE, *TASK)
    a, b, c = (drawn(study(name)) for name in "abc")
    assert a == b != c and len({row[0]["lr"] for row in a}) == 4


def interrupted_at(monkeypatch, number: int, action) -> None:
    """Do something when the nth trial's program has been started."""
    count, start = iter(range(1, 100)), search_trial.started

    def starting(*arguments):
        process = start(*arguments)
        if next(count) == number:
            action()
        return process

    monkeypatch.setattr(search_trial, "started", starting)


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [interrupt, kill])
def test_an_interrupted_search_goes_on_with_the_same_trials(end, place, monkeypatch, capsys):
    words = ["--trials", "6", *SPACE, "--pruner", "none", *TASK]  # the last ones by TPE
    run(monkeypatch, *words, "--seed", "5")  # the task's own seed
    expected = drawn(study())
    Path("runs").rename("whole")
    for number in (1, 5):
        with monkeypatch.context() as patch:
            interrupted_at(patch, number, end)
            status = in_child(lambda patch=patch: run(patch, *words, "--seed", "5"))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed if end is kill else os.WEXITSTATUS(status) == 130
    assert len(search.ended(study())) == 4
    run(monkeypatch, *words, "--seed", "5")
    assert drawn(study()) == expected
    assert not list(Path("runs").rglob("*.safetensors")) and not list(Path("runs").rglob("data-*"))
    assert len(list(Path("runs").rglob("trial-*"))) == 6, "what interrupted trials left is gone"
    assert "(6 of 6)" in capsys.readouterr().out
    run(monkeypatch, *words, "--seed", "5")  # nothing is left to do
    assert len(search.ended(study())) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_search_that_is_stopped_says_so_and_stops_its_trial(number, place, monkeypatch, capsys):
    monkeypatch.setenv("EPOCH_SECONDS", "60")
    trials, start = [], search_trial.started
    monkeypatch.setattr(
        search_trial, "started", lambda *words: trials.append(start(*words)) or trials[-1]
    )
    monkeypatch.setattr(search_trial.time, "sleep", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--trials", "2", *SPACE, *TASK)
    said = f"stopped by {number.name}: the same command goes on with this study\n"
    assert (stop.value.code, capsys.readouterr().err) == (128 + number, said)
    assert trials[0].poll() is not None


def test_more_trials_may_be_asked_for_later(place, monkeypatch):
    run(monkeypatch, "--trials", "2", *SPACE, *TASK)
    first = drawn(study())
    run(monkeypatch, "--trials", "4", *SPACE, *TASK)
    assert drawn(study())[:2] == first and len(drawn(study())) == 4


def test_several_processes_share_a_study(place, monkeypatch):
    monkeypatch.setenv("EPOCH_SECONDS", "0.1")
    words = ["--trials", "8", "--storage", f"sqlite:///{place}/shared.db", "--study", "ours"]
    run(monkeypatch, *words[:1], "1", *words[2:], *SPACE, *TASK)  # makes the database
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
                run(monkeypatch, *words, *SPACE, *TASK)
            finally:
                os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    found = needs_optuna().load_study(study_name="ours", storage=f"sqlite:///{place}/shared.db")
    by = [trial.user_attrs["process"].split(":")[1] for trial in search.ended(found)]
    assert {str(child) for child in children} <= set(by)
    assert 8 <= len(by) <= 9 and len({trial.params["lr"] for trial in found.trials}) == len(by)


def test_runs_that_are_worse_than_others_are_stopped(place, monkeypatch, capsys):
    """Six good rates are known; then bad ones come, which take a minute if they are let."""
    optuna = needs_optuna()
    words = ["--prune_after", "0", *SPACE[:2], *TASK]
    run(monkeypatch, "--trials", "1", *words)
    for rate in (1e-3, 1.1e-3, 0.9e-3, 1.2e-3, 1.3e-3):
        study().enqueue_trial({"lr": rate})
    run(monkeypatch, "--trials", "6", *words)
    study().enqueue_trial({"lr": 1e-6})
    monkeypatch.setenv("EPOCH_SECONDS", "60")
    started = time.monotonic()
    run(monkeypatch, "--trials", "7", *words)
    assert time.monotonic() - started < 30
    assert study().trials[-1].state == optuna.trial.TrialState.PRUNED
    assert "(7 of 7): stopped early: --lr 1e-06" in capsys.readouterr().out


def test_a_failed_trial_is_told_and_the_search_goes_on(place, monkeypatch, capsys):
    words = ["--trials", "6", "--space", "lr=1e-4..1e-2", "batch_size=8,13", *TASK]
    run(monkeypatch, *words)
    out = capsys.readouterr().out
    states = [trial.state.name for trial in study().trials]
    assert set(states) == {"COMPLETE", "FAIL"} and len(states) == 6
    assert "failed, exit code 1: 13 rows bring bad luck: --lr" in out and "best of 6 trials" in out


def test_a_search_in_which_nothing_works_ends(place, monkeypatch, refused):
    said = "3 trials failed and none worked, the last: failed, exit code 1: 13 rows bring bad luck"
    with refused(said):
        run(monkeypatch, "--space", "lr=1e-3", "batch_size=13", *TASK)


# -- the tasks' own programs -----------------------------------------------------------------------

SPY = """
import sys

def note(event, arguments, log=open({log!r}, "a", buffering=1)):
    if event == "open" and any(word in str(arguments[0]) for word in {words!r}):
        log.write(f"{{arguments[0]}}\\n")

sys.addaudithook(note)
"""
TEST_FILES = ("test-student.csv", "sonnets_held_out.txt")
REAL = {
    "classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": [],
    "sonnet_generation": ["--max_new_tokens", "4"],
}


@pytest.mark.parametrize("task", REAL)
def test_with_one_candidate_it_is_the_plain_run_and_no_test_file_is_opened(
    task, tmp_path, monkeypatch, capsys
):
    """Test files that end the run if they are read, and Python tells of every file it opens."""
    needs_optuna()
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=20)
    write_model("model", dropout=0.1)
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", *REAL[task]]
    rate = ["--lr", "1e-3"]
    call_main(monkeypatch, task, *words, *rate, "--runs_dir", "plain")
    for path in Path("data").iterdir():
        if path.name.endswith(TEST_FILES):
            path.write_bytes(b"\xff poison")
    write("spy/sitecustomize.py", SPY.format(log=str(tmp_path / "opened"), words=TEST_FILES))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "spy"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = ["--trials", "1", "--space", "lr=1e-3"]
    run(monkeypatch, *flags, "--", f"{task}.py", *words)
    opened = set(Path("opened").read_text(encoding="utf-8").splitlines())
    stand_ins = {path for path in opened if "/runs/search/" in path}
    assert len(stand_ins) == 1 and opened == stand_ins
    histories = [
        [json.loads(line) | {"seconds": 0} for line in path.read_text("utf-8").splitlines()]
        for path in (
            run_path("plain", "*/metrics.jsonl"),
            run_path("runs/search", "*/trial-0/*/metrics.jsonl"),
        )
    ]
    assert histories[0] == histories[1]
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{' '.join(words)} --lr 1e-3")


def test_the_dev_sonnet_that_is_a_prompt_is_left_out_as_the_task_does(tmp_path, monkeypatch):
    """Without a look at the prompts: the stand-in has its opening."""
    import hashlib
    import re

    monkeypatch.chdir(tmp_path)
    poem = "\n".join(f"Line {word} of it," for word in ("one", "two", "three", "four"))
    write("gold.txt", f"137\n\nAnother\npoem\nis this\n\n138\n\n{poem}\n")
    write("sonnets.txt", f"1\n\n{poem}\n")
    letters = re.sub("[^a-z]", "", "".join(poem.splitlines()[:3]).lower())
    words = ["--sonnet_path", "sonnets.txt", "--dev_gold_path", "gold.txt"]
    args = search_trial.PROGRAMS["sonnet_generation.py"].get_args(words)
    for known, expected in (("0" * 16, "This is no prompt"), (None, "Line one of it,")):
        known = known or hashlib.sha256(letters.encode()).hexdigest()[:16]
        monkeypatch.setattr(search_trial, "HELD_OUT_DEV_SONNET", known)
        search_trial.sonnets_without_test(args, tmp_path)
        assert expected in Path("sonnets_held_out.txt").read_text(encoding="utf-8")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["--space", "lr=1"], "expected at the end: -- PROGRAM.py and its flags, one of"),
        (["--space", "lr=1", "--", "pretrain.py"], "expected at the end: -- PROGRAM.py"),
        (["--space", "lr=1..", *TASK], "'1..': expected A,B,C or LOW..HIGH"),
        (["--space", "lr=0.1", "extension=nix", *TASK], "--extension nix: no such technique"),
        (["--space", "extension=none|lora:rnk=1,2", *TASK], "option 'rnk=2', expected some of"),
        (["--space", "lr=-1,1", *TASK], "--lr -1.0: expected at least 0"),
        (["--space", "lr=1", *TASK, "--checkpoint", "x"], "--checkpoint: a trial trains anew"),
        (["--space", "lr=1", *TASK, "--resume"], "--resume: a trial trains anew"),
        (["--space", "lr=1", "--", "classifier.py"], "a search has one figure: add --dataset sst"),
        (["--space", "lr=1", *TASK, "--data_dir", "no"], "no/ids-sst-train.csv: no such file"),
        (["--space", "lr=1", "--trials", "0", *TASK], "--trials 0: expected at least 1"),
        (["--space", "lr=1e-3", "--metric", "bleu", *TASK], "--metric bleu: a run has epoch, dev"),
        (["--space", "lr=1", "--storage", "nix://", *TASK], "--storage nix://: cannot be opened"),
    ],
)
def test_calls_that_make_no_sense_are_refused(words, said, place, monkeypatch, refused):
    with refused(said):
        run(monkeypatch, *words)


def test_an_unknown_flag_is_said_before_any_trial(place, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--space", "learning_rate=1,2", *TASK)
    assert stop.value.code == 2 and not Path("runs").exists()
    assert "classifier.py: it does not take --dataset sst" in capsys.readouterr().err


def test_a_study_of_other_flags_is_not_mixed(place, monkeypatch, capsys, refused):
    monkeypatch.setattr("engine.machine_flags.has_bf16_units", lambda device: True)
    words = ["--trials", "1", "--study", "mine"]
    run(monkeypatch, *words, *SPACE, *TASK)
    capsys.readouterr()
    with refused("--study mine: another fixed"):
        run(monkeypatch, *words, *SPACE, *TASK, "--bf16")
    with refused("--study mine: another space"):
        run(monkeypatch, *words, *SPACE[:2], *TASK)


def test_a_file_that_is_no_database_is_refused(place, monkeypatch, refused):
    write("broken.db", "this is no database, " * 100)
    words = ["--storage", "sqlite:///broken.db", *SPACE, *TASK]
    with refused("--storage sqlite:///broken.db: cannot be opened"):
        run(monkeypatch, *words)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:{}@nowhere.invalid:5432/db",
        "postgresql+nodriver://me:{}@nowhere.invalid/db",
        "mysql://me:{}@nowhere.invalid/db?charset=utf8",
        "postgresql://nowhere.invalid/db?user=me&password={}",
        "nix://me:{}@nowhere",
    ],
)
@pytest.mark.parametrize("password", ["hunter22", "p%40ss%2Fword", "with@sign"])
def test_a_password_is_never_shown(url, password, place, monkeypatch, capsys):
    monkeypatch.setattr("engine.machine_flags.has_bf16_units", lambda device: True)
    with pytest.raises(SystemExit):
        run(monkeypatch, "--storage", url.format(password), *SPACE, *TASK)
    said = "".join(capsys.readouterr())
    assert "cannot be opened" in said and "***" in said and "nowhere" in said
    assert password not in said and unquote(password) not in said


def test_other_urls_are_shown_as_they_are():
    for url in ("sqlite:////tmp/a.db", "postgresql://me@host/db", "postgresql://host/db"):
        assert masked(url, url) == url


def test_a_missing_optuna_is_named_with_the_remedy(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with refused("search needs optuna: pip install optuna\n"):
        run(monkeypatch, *SPACE, *TASK)
