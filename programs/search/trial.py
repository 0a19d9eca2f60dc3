"""A trial of a search: one run of a task's own program, watched, without its test files.

The task's predictions are thrown away, and a stand-in takes the place of its test file. The figure
is the dev metric of the best epoch, from metrics.jsonl, which grows while the task trains.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from engine.children import start_child
from engine.errors import InputError
from engine.files import ROOT, atomic_write
from engine.records import data_file, read_sonnets
from engine.sonnets import opening, prompt_text
from engine.tables import missing
from programs.search.space import words_of
from programs.tasks import PROGRAMS

FOLDER = ROOT  # of the tasks' programs
POLL = 0.5  # seconds between looks at a run's figures
# Sonnet 138 of the course's dev sonnets is prompt 155, too, and so left out by the task: that is
# known here by a hash of the letters of its first three lines, since the prompts are not read.
HELD_OUT_DEV_SONNET = "297543bf5df3fe4b"

# -- tasks -----------------------------------------------------------------------------------------


def sentiment_without_test(args, folder: Path) -> list[str]:
    """A data folder with links to train and dev, and one invented row as test."""
    if args.dataset == "all":
        raise InputError("classifier.py: a search has one figure: add --dataset sst or cfimdb")
    for split in ("train", "dev"):
        name = data_file(args.dataset, split)
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(existing(Path(args.data_dir) / name).resolve())
    _write(folder / data_file(args.dataset, "test"), "\tid\tsentence\n0\tx\tnothing\n")
    return ["--data_dir", str(folder)]


def pairs_without_test(args, folder: Path) -> list[str]:
    for path in (args.para_train, args.para_dev):
        existing(path)
    path = folder / data_file("paraphrase", "test")
    _write(path, "\tid\tsentence1\tsentence2\n0\tx\twhat ?\twhy ?\n")
    return ["--para_test", str(path)]


def sonnets_without_test(args, folder: Path) -> list[str]:
    """One prompt: the dev sonnet that the task has to leave out, or three invented lines."""
    prompt = "This is no prompt\nbut three lines in\nthe place of one"
    existing(args.sonnet_path)
    if Path(args.dev_gold_path).exists():
        for sonnet in read_sonnets(args.dev_gold_path):
            if hashlib.sha256(opening(sonnet).encode()).hexdigest().startswith(HELD_OUT_DEV_SONNET):
                prompt = prompt_text(sonnet)
    path = folder / data_file("sonnet", "test")
    _write(path, f"1\n\n{prompt}\n")
    return ["--held_out_sonnet_path", str(path), "--max_new_tokens", "1"]


def existing(path) -> Path:
    if not Path(path).is_file():
        raise missing(path)
    return Path(path)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


WITHOUT_TEST = {  # the flags by which a program does without test files
    "classifier.py": sentiment_without_test,
    "paraphrase_detection.py": pairs_without_test,
    "sonnet_generation.py": sonnets_without_test,
}

# -- one trial -------------------------------------------------------------------------------------


class TrialFailed(Exception):
    """The task's program ended with an error; the search goes on without this trial."""


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's run, figures and log are, in its study's folder."""
    return folder / f"trial-{number}"


def figures(folder: Path, metric: str) -> list[tuple[int, float]]:
    """(epoch, figure) of each epoch that a run has finished."""
    found = []
    for path in folder.glob("*/metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if metric not in record:
                raise InputError(f"--metric {metric}: a run has {', '.join(record)}")
            found.append((record["epoch"], record[metric]))
    return found


def started(args, words: list[str], folder: Path, log) -> subprocess.Popen:
    """The task's program with all its flags; what it writes goes below the folder.

    It ends with this process, even if this one is killed.
    """
    names = PROGRAMS[args.program].output_flags
    outputs = [word for name in names for word in (f"--{name}", folder / name)]
    every = [*args.fixed, *words, *args.stand_in, "--runs_dir", folder, *outputs]
    return start_child([FOLDER / args.program, *every], stdout=log, stderr=subprocess.STDOUT)


def run_trial(args, trial) -> float:
    """The best dev figure of a run; a run that is worse than others were is stopped."""
    import optuna

    words = words_of(args.parsed_space, trial)
    trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
    folder = trial_folder(args.folder, trial.number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log_path, known = folder / "log.txt", []
    with open(log_path, "w", encoding="utf-8") as log:
        run = started(args, words, folder, log)
        try:
            while True:
                ended = run.poll() is not None  # before looking: then nothing is overlooked
                new = figures(folder, args.metric)[len(known) :]
                for epoch, value in new:
                    known.append(value)
                    trial.report(value, epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
                if ended:
                    break
                time.sleep(POLL)
        finally:
            _stop(run)
            for checkpoint in folder.glob("*/*.safetensors"):
                checkpoint.unlink()
    if run.returncode or not known:
        lines = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise TrialFailed(f"exit code {run.returncode}: {said.removeprefix('error: ')}")
    return min(known) if args.minimize else max(known)


def _stop(run: subprocess.Popen) -> None:
    if run.poll() is None:
        run.terminate()
        try:
            run.wait(10)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
