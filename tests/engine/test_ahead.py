"""Batches put together in a thread: the same run, and no thread that outlives its epoch."""

import gc
import threading
import time
import traceback

import pytest
import torch
from children import in_child
from course_files import call_main, work_in, write_course, write_model
from tiny_run import Averager, assert_same_results, interrupt_after_save, run, same_bits, weights

from engine.ahead import ahead, groups_of
from engine.batches import collate
from engine.signals import Stopped
from engine.trainer import Trainer

TASKS = {
    "classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase_detection": ["--accumulate", "2", "--clip", "1"],
}


@pytest.fixture
def threaded(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr("engine.ahead.DEPTH", {"cpu": 3})


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert threads() == []


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def noted(items, seen: list):
    for item in items:
        seen.append(item)
        yield item


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# -- the iterator ------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_all_items_come_in_order(count, depth):
    assert list(ahead(range(count), depth)) == list(range(count))


def test_so_many_items_are_taken_before_their_turn_and_no_more():
    seen = []
    items = ahead(noted(range(20), seen), 3)
    for i in range(10):
        assert next(items) == i
        wait_for(lambda i=i: len(seen) == i + 4)
    time.sleep(0.05)
    assert seen == list(range(13))
    items.close()


def test_items_are_taken_while_the_last_one_is_in_use():
    """With an item that waits until the one before it is out, on demand this would stand still."""
    out = threading.Event()

    def items():
        yield 0
        assert out.wait(30)
        yield 1

    source = ahead(items(), 1)
    next(source)
    out.set()
    assert list(source) == [1]


def broken(count: int):
    yield from range(count)
    raise OSError("the disk is gone")


@pytest.mark.parametrize("count", [0, 5])
def test_an_error_comes_in_its_turn_with_the_thread_s_traceback(count):
    seen = []
    with pytest.raises(OSError, match="the disk is gone") as error:
        for item in ahead(broken(count), 3):
            seen.append(item)
    assert seen == list(range(count))
    assert traceback.extract_tb(error.value.__traceback__)[-1].name == "broken"


@pytest.mark.parametrize("how", ["close", "error", "forget"])
def test_the_thread_ends_when_the_loop_is_left(how):
    seen = []
    items = ahead(noted(range(1000), seen), 3)
    next(items)
    assert len(threads()) == 1
    if how == "close":
        items.close()
    elif how == "error":
        with pytest.raises(KeyboardInterrupt):
            items.throw(KeyboardInterrupt())
    else:
        del items
        gc.collect()
    assert threads() == [] and len(seen) <= 4


def test_a_forked_process_closes_what_its_parent_reads_and_reads_its_own():
    items = ahead(range(100), 3)
    next(items)
    assert in_child(items.close) == 0
    assert in_child(lambda: list(ahead(range(100), 3))) == 0
    assert list(items) == list(range(1, 100))


# -- in training -------------------------------------------------------------------------------


class Loader:
    def __init__(self, follows_model: bool):
        self.follows_model, self.seen = follows_model, []

    def groups(self, size, *, first):
        return noted(range(first, 100, size), self.seen)


@pytest.mark.parametrize(
    "device, follows_model, taken",
    [("cpu", False, 1), ("cuda", False, 5), ("mps", False, 5), ("cuda", True, 1)],
)
def test_batches_are_put_together_ahead_for_accelerators_unless_they_follow_the_model(
    device, follows_model, taken
):
    loader = Loader(follows_model)
    with groups_of(loader, 2, 6, torch.device(device)) as groups:
        assert next(groups) == 6
        wait_for(lambda: len(loader.seen) == taken)
        time.sleep(0.02)
        assert loader.seen == list(range(6, 6 + 2 * taken, 2))


def test_a_run_ends_at_the_bits_of_one_on_demand(tmp_path, monkeypatch):
    found, ends = set(), []

    def noting(examples):
        found.add(threading.current_thread().name)
        return collate(examples)

    monkeypatch.setattr("engine.batches.collate", noting)
    for depth in (3, 0):
        monkeypatch.setattr("engine.ahead.DEPTH", {"cpu": depth})
        model = Averager(dropout=0.5)
        torch.manual_seed(1)
        history = run(model, tmp_path / str(depth), rows=50, epochs=3, accumulate=2).history
        ends.append((weights(model), [line["train_loss"] for line in history]))
        assert found == ({"ahead_0"} if depth else {"MainThread"})
        found.clear()
    assert same_bits(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_resumes_to_the_same_bits(task, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=24)
    write_model("model", dropout=0.1)
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--lr", "1e-3"]
    words += [*TASKS[task], "--save_minutes", "0"]
    call_main(monkeypatch, task, *words, "--runs_dir", "demand")
    monkeypatch.setattr("engine.ahead.DEPTH", {"cpu": 3})
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_after_save(patch, epoch=1, step=1)
        call_main(patch, task, *words, "--runs_dir", "cut")
    assert threads() == []
    call_main(monkeypatch, task, *words, "--runs_dir", "cut", "--resume")
    assert_same_results("demand", "cut")


@pytest.mark.parametrize("error", [Stopped(15), KeyboardInterrupt(), OSError("no space left")])
def test_no_thread_stays_while_the_error_of_a_step_is_handled(
    error, tmp_path, monkeypatch, threaded
):
    def step(trainer, group, step=Trainer.step):
        step(trainer, group)
        assert len(threads()) == 1
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(type(error)):
        try:
            run(Averager(), tmp_path, rows=80)
        except BaseException:
            assert threads() == []
            raise


def test_an_error_in_a_batch_ends_the_run_with_its_own_traceback(tmp_path, monkeypatch, threaded):
    def collate(examples):
        raise OSError("the disk is gone")

    monkeypatch.setattr("engine.batches.collate", collate)
    with pytest.raises(OSError, match="the disk is gone") as error:
        run(Averager(), tmp_path)
    assert traceback.extract_tb(error.value.__traceback__)[-1].name == "collate"


def test_a_run_in_a_forked_process_ends(tmp_path, threaded):
    """Also after one here."""
    run(Averager(), tmp_path / "here")
    assert in_child(lambda: run(Averager(), tmp_path / "there", epochs=2)) == 0
