"""A run is one unit: whatever ends it, best and last belong together, and to one process."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from children import at_write, in_child
from tiny_run import Averager, folder, no_picture, run, run_path, same_bits, summed_loss, weights

from engine import files
from engine.best_file import named_best
from engine.checkpoint import RunFolder
from engine.errors import InputError, command
from engine.extension import Extension
from engine.files import ROOT, atomic_write, process_mark, remove_leftovers
from engine.trainer import Trainer
from engine.trees import load_tree, save_tree, tree_digest

FLAGS = {"epochs": 3, "save_minutes": 0}


def figures(*values):
    """`evaluate` for a run whose epochs have these dev figures."""
    rest = iter(values)
    return lambda model: {"dev": next(rest)}


def best_of(root) -> dict:
    return load_tree(run_path(root, "*/best.safetensors"))


def size_of_weights(model) -> dict:
    """A figure that depends on nothing but the weights."""
    return {"dev": float(model.head.weight.abs().sum())}


def weights_of_whole_run(tmp_path, seed: int) -> dict:
    run(Averager(seed=seed), tmp_path / f"whole-{seed}", evaluate=figures(0.1, 0.3, 0.2), **FLAGS)
    return best_of(tmp_path / f"whole-{seed}")["model"]


def count_writes(monkeypatch, action) -> int:
    counted, sync = [], files.sync
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", lambda path: (counted.append(path), sync(path)))
        action()
    return len(counted)


# -- best and last -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_second_attempt_killed_anywhere_leaves_the_first_result_or_goes_on_to_its_own(
    step, tmp_path, monkeypatch
):
    """The same flags again, killed at any write, then resumed: never a mixture of the two."""
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)  # nine tenths of the time
    first, second = (weights_of_whole_run(tmp_path, seed) for seed in (1, 2))

    def again(root, **more):
        return run(Averager(seed=2), root, evaluate=figures(0.1, 0.3, 0.2, 0.0), **FLAGS, **more)

    run(Averager(seed=1), tmp_path / "count", evaluate=figures(0.1, 0.3, 0.2), **FLAGS)
    writes = count_writes(monkeypatch, lambda: again(tmp_path / "count"))
    ends = set()
    for number in range(1, writes + 1, step):
        root = tmp_path / str(number)
        run(Averager(seed=1), root, evaluate=figures(0.1, 0.3, 0.2), **FLAGS)
        with monkeypatch.context() as kill:
            at_write(kill, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            status = in_child(lambda root=root: again(root))
        assert os.WIFSIGNALED(status)
        done = len(load_tree(run_path(root, "*/last.safetensors"))["progress"]["history"])
        rest = (0.1, 0.3, 0.2)[done:] if done < 3 else ()
        resumed = Averager(seed=2)
        progress = run(resumed, root, evaluate=figures(*rest), resume=True, **FLAGS)
        assert progress.finished and progress.best_epoch == 1
        found = best_of(root)["model"]
        assert same_bits(found, first) or same_bits(found, second), number
        ends.add(same_bits(found, first))
        assert not list(root.glob("*/best.new.safetensors"))
    assert ends == {True, False}


def test_last_names_its_best_by_epoch_and_digest(tmp_path):
    run(Averager(), tmp_path, evaluate=figures(0.1, 0.3, 0.2), **FLAGS)
    named = load_tree(run_path(tmp_path, "*/last.safetensors"))["best"]
    digest = tree_digest(run_path(tmp_path, "*/best.safetensors"))
    assert named == {"epoch": 1, "digest": digest}


def test_a_best_file_of_another_attempt_is_refused(tmp_path):
    """Also where its epoch is the same."""
    for seed, root in ((1, tmp_path / "a"), (2, tmp_path / "b")):
        run(Averager(seed=seed), root, evaluate=figures(0.1, 0.3, 0.2), **FLAGS)
    other, mine = (run_path(tmp_path / name, "*/best.safetensors") for name in "ba")
    mine.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"best\.safetensors: of epoch 1, .*of two attempts"):
        run(Averager(), tmp_path / "a", resume=True, **FLAGS)


def test_a_best_file_that_is_gone_is_named(tmp_path):
    run(Averager(), tmp_path, evaluate=figures(0.1, 0.3, 0.2), **FLAGS)
    run_path(tmp_path, "*/best.safetensors").unlink()
    with pytest.raises(InputError, match=r"best\.safetensors: missing, last\.safetensors names it"):
        run(Averager(), tmp_path, resume=True, **FLAGS)


@pytest.mark.parametrize("epoch, fits", [(1, True), (0, False)])
def test_files_from_before_last_named_its_best_are_compared_by_epoch(tmp_path, epoch, fits):
    last, best = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    save_tree(last, {"task": "tiny", "progress": {"best_epoch": 1, "finished": True}})
    save_tree(best, {"task": "tiny", "metrics": {"epoch": epoch}})
    if fits:
        assert named_best(last, best)["epoch"] == 1
    else:
        with pytest.raises(InputError, match=r"of epoch 0, .*names epoch 1"):
            named_best(last, best)


# -- several epochs between two saves ----------------------------------------------------------


def lines_of(root) -> list[dict]:
    """The figures of each epoch, without times."""
    text = run_path(root, "*/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) | {"seconds": 0} for line in text.splitlines()]


@pytest.mark.parametrize("late, expected", [(None, [(4, 0)]), (1, [(2, 0), (4, 0)])])
def test_last_is_written_at_the_end_and_after_an_epoch_only_if_it_is_time(
    late, expected, tmp_path, monkeypatch
):
    saved, judge, write_last = [], Trainer.judge, RunFolder._write_last

    def judged(trainer, metrics):
        if trainer.progress.epoch == late:
            trainer.saved_at -= 3600
        judge(trainer, metrics)

    def note(folder, tree):
        saved.append((tree["progress"]["epoch"], tree["progress"]["step"]))
        write_last(folder, tree)

    monkeypatch.setattr(Trainer, "judge", judged)
    monkeypatch.setattr(RunFolder, "_write_last", note)
    run(Averager(), tmp_path, epochs=4, save_minutes=60)
    assert saved == expected
    named = named_best(*(run_path(tmp_path, f"*/{name}.safetensors") for name in ("last", "best")))
    assert named["epoch"] == 3


def kill_after_epoch(patch, epoch: int) -> None:
    """When its figures are written, and its best."""
    write_metrics = RunFolder.write_metrics

    def write_and_die(folder, history):
        write_metrics(folder, history)
        if len(history) == epoch + 1:
            folder.writer.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(RunFolder, "write_metrics", write_and_die)


@pytest.mark.parametrize(
    "values, waits",
    [((0.1, 0.2, 0.3, 0.4), True), ((0.1, 0.3, 0.2, 0.4), True), ((0.4, 0.1, 0.2, 0.3), False)],
)
def test_a_run_killed_epochs_after_its_save_goes_on_from_there_to_the_same_bits(
    values, waits, tmp_path, monkeypatch
):
    """With the best epoch of that moment; later ones, which wait beside it, are found again."""
    whole, part, how = tmp_path / "whole", tmp_path / "part", {"epochs": 4, "save_minutes": 60}
    run(Averager(dropout=0.2), whole, evaluate=figures(*values), **how)
    with monkeypatch.context() as patch:
        kill_after_epoch(patch, 2)
        loss_fn = raising(signal.SIGUSR1, 5, summed_loss)  # a save in the second epoch
        start = {"evaluate": figures(*values), "loss_fn": loss_fn, **how}
        status = in_child(lambda: run(Averager(dropout=0.2), part, **start))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    progress = load_tree(run_path(part, "*/last.safetensors"))["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 2) and len(lines_of(part)) == 3
    assert best_of(part)["metrics"]["epoch"] == 0
    assert bool(list(part.glob("*/best.new.safetensors"))) == waits
    resumed = Averager(dropout=0.2, seed=3)
    run(resumed, part, evaluate=figures(*values[1:]), resume=True, **how)
    assert same_bits(best_of(part)["model"], best_of(whole)["model"])
    one, other = (load_tree(run_path(root, "*/last.safetensors")) for root in (whole, part))
    assert same_bits(one["model"], other["model"]) and lines_of(part) == lines_of(whole)
    assert not list(part.glob("*/best.new.safetensors"))


def test_a_second_attempt_killed_before_it_has_saved_leaves_nothing(tmp_path, monkeypatch):
    """Not even its figures: --resume takes the first attempt's, which its files are of."""
    values = (0.1, 0.3, 0.2)
    run(Averager(), tmp_path, epochs=3, evaluate=figures(*values))
    first, lines = best_of(tmp_path)["model"], lines_of(tmp_path)
    with monkeypatch.context() as patch:
        kill_after_epoch(patch, 1)
        again = {"epochs": 3, "evaluate": figures(*values)}
        assert os.WIFSIGNALED(in_child(lambda: run(Averager(seed=2), tmp_path, **again)))
    assert len(lines_of(tmp_path)) == 2
    resumed = Averager(seed=2)
    assert run(resumed, tmp_path, epochs=3, resume=True).best_epoch == 1
    assert same_bits(best_of(tmp_path)["model"], first) and lines_of(tmp_path) == lines
    assert same_bits(weights(resumed), first)


@pytest.mark.parametrize("save", [None, 5])
def test_a_run_that_diverges_names_the_file_of_its_best_epoch(save, tmp_path):
    """Which waits for the next last file, if there was one."""
    broken = iter([1.0] * 7 + [math.nan])

    def loss_fn(logits, batch):
        return summed_loss(logits, batch) * next(broken)

    with pytest.raises(InputError, match="keeps the best epoch before") as error:
        run(
            Averager(),
            tmp_path,
            epochs=3,
            loss_fn=raising(signal.SIGUSR1, save, loss_fn),
        )
    name = "best.new.safetensors" if save else "best.safetensors"
    path = run_path(tmp_path, f"*/{name}")
    assert f"the run stops, {path} keeps" in str(error.value)
    assert load_tree(path)["metrics"]["epoch"] == 1


# -- one process a run -------------------------------------------------------------------------

HOLDER = """
import sys, time
sys.path[:0] = sys.argv[2:]
from tiny_run import folder
with folder(sys.argv[1], {"epochs": 1, "seed": 0}).locked():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run in tmp_path."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path), str(ROOT), str(ROOT / "tests")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_that_another_process_holds_is_refused_with_its_number(holder, tmp_path):
    half = run_path(tmp_path) / ".last.safetensors.abc.tmp"
    half.write_bytes(b"half")
    with pytest.raises(InputError, match=rf"process {holder.pid} on .* is at work on this run"):
        run(Averager(), tmp_path)
    assert half.exists(), "leftovers are removed only by the process that holds the run"


def test_a_dead_process_s_lock_is_free(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert run(Averager(), tmp_path).finished


def test_a_run_is_free_after_its_end_and_after_an_error(tmp_path):
    def fail(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Averager(), tmp_path, evaluate=fail)
    assert run(Averager(), tmp_path).finished and run(Averager(), tmp_path).finished


def test_a_worker_that_is_not_the_main_one_takes_no_lock(holder, tmp_path):
    other = folder(tmp_path)
    other.writes = False
    with other.locked():
        pass


def test_what_a_living_process_writes_is_no_leftover(tmp_path):
    with atomic_write(tmp_path / "a.csv") as file:
        remove_leftovers(tmp_path)
        file.write("kept")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "kept"


def test_what_a_dead_process_wrote_is_a_leftover(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    mark = re.sub(r"^\d+", child.stdout.strip(), process_mark())
    for name in (f".a.csv.{mark}.x1_y.tmp", ".a.csv.abc.tmp"):
        (tmp_path / name).write_text("half", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- signals -----------------------------------------------------------------------------------


def raising(number: int, at: int, function, times: int = 1):
    """The function, with a signal to this process in its call of this number."""
    calls = iter(range(1, 100))

    def call(*args):
        if next(calls) == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return function(*args)

    return call


def stopped_by(number: int, root, **options) -> dict:
    """The progress that a run in a process of its own saves when it is stopped in this way."""
    status = in_child(command(lambda: run(Averager(), root, **options)))
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + number
    return load_tree(run_path(root, "*/last.safetensors"))["progress"]


STOPPING = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
OPTIONS = {"epochs": 2, "save_minutes": 60, "evaluate": size_of_weights}  # saves at the end


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_to_the_same_bits(
    number, step, tmp_path, monkeypatch
):
    """Steps 1 to 3 are the first epoch's."""
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)
    run(Averager(), tmp_path / "whole", **OPTIONS)
    part = tmp_path / "part"
    progress = stopped_by(number, part, loss_fn=raising(number, step, summed_loss), **OPTIONS)
    assert (progress["epoch"], progress["step"]) == ((0, step) if step < 4 else (1, step - 3))
    run(Averager(), part, resume=True, **OPTIONS)
    assert same_bits(best_of(part)["model"], best_of(tmp_path / "whole")["model"])


class Doubled(Extension):
    """Evaluations see twice the head's weights."""

    @contextlib.contextmanager
    def evaluated(self, model):
        with torch.no_grad():
            model.head.weight.mul_(2)
            try:
                yield
            finally:
                model.head.weight.div_(2)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_an_evaluation_before_its_next_batch(number, tmp_path, monkeypatch):
    """The epoch's training is saved, and what an average of weights has swapped is put back."""
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)
    batch = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
    whole, part = tmp_path / "whole", tmp_path / "part"

    def evaluate(model):
        model(*batch)
        return size_of_weights(model)

    def options(evaluate) -> dict:
        return {**OPTIONS, "evaluate": evaluate, "extensions": [Doubled()]}

    run(Averager(), whole, **options(evaluate))
    progress = stopped_by(number, part, **options(raising(number, 2, evaluate)))
    assert (progress["epoch"], progress["step"], len(progress["history"])) == (1, 3, 1)
    run(Averager(), part, resume=True, **options(evaluate))
    assert same_bits(best_of(part)["model"], best_of(whole)["model"])


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path):
    twice = raising(signal.SIGINT, 2, summed_loss, times=2)
    status = in_child(command(lambda: run(Averager(), tmp_path, loss_fn=twice)))
    assert os.WEXITSTATUS(status) == 130
    assert not list(tmp_path.glob("*/last.safetensors"))


def test_sigusr1_saves_after_the_step_and_the_run_goes_on(tmp_path, monkeypatch):
    saved, save_last = [], RunFolder.save_last

    def note(folder, tree):
        saved.append((tree["progress"]["epoch"], tree["progress"]["step"]))
        save_last(folder, tree)

    monkeypatch.setattr(RunFolder, "save_last", note)
    run(Averager(), tmp_path, loss_fn=raising(signal.SIGUSR1, 2, summed_loss), **OPTIONS)
    assert saved == [(0, 2), (2, 0)]


SWALLOWED = """
import os, signal, sys, time, weakref
from engine.errors import command

class Thing: pass

@command
def main():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    print("it went on", flush=True)
    time.sleep(60)

main()
"""


def test_a_ctrl_c_in_a_callback_that_loses_it_comes_again():
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "it went on\n")
    assert done.stderr.startswith("interrupted: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_stopped_says_so_in_a_line(number, tmp_path):
    code = "from engine.errors import command\nimport time\n\n@command\ndef main():\n"
    code += "    print('begun', flush=True)\n    time.sleep(60)\n\nmain()"
    words = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 128 + number
    assert said.startswith(f"stopped by {number.name}: ") and said.count("\n") == 1
    assert "--resume" in said
