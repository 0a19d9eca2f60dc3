"""A thread writes what training saves; training waits for it only where it must."""

import os
import signal
import threading

import pytest
import torch
from tiny_run import Averager, folder, no_picture, run, run_path, same_bits, weights

from engine.checkpoint import RunFolder
from engine.host_copies import QUEUES, HostCopies
from engine.trees import load_tree
from engine.writer import Writer


def test_calls_are_made_in_order_in_one_thread_and_are_done_at_the_end():
    seen = []

    def note(tree):
        seen.append((tree["number"], threading.current_thread()))

    with Writer() as writer:
        for number in range(20):
            writer.write(note, {"number": number})
    assert [number for number, _ in seen] == list(range(20))
    assert {thread for _, thread in seen} != {threading.current_thread()}
    assert len({thread for _, thread in seen}) == 1


def test_the_caller_waits_only_for_the_same_function_s_call_before():
    """As a best file and its last file may be on their way together."""
    free, begun = threading.Event(), []

    def best(tree):
        assert free.wait(timeout=60)

    def last(tree):
        assert free.wait(timeout=60)

    with Writer() as writer:
        writer.write(best, {})
        writer.write(last, {})
        second = threading.Thread(
            target=lambda: (writer.write(last, {}), begun.append("second")), daemon=True
        )
        second.start()
        second.join(timeout=0.2)
        assert begun == []
        free.set()
        second.join()
    assert begun == ["second"]


def test_what_changes_afterwards_is_not_written():
    tensor, seen = torch.zeros(3), []
    free = threading.Event()

    def look(tree):
        assert free.wait(timeout=60)
        seen.append(tree)

    with Writer() as writer:
        writer.write(look, {"a": [tensor], "b": (tensor[1:],), "c": 1})
        tensor.add_(1)
        free.set()
    [tree] = seen
    assert tree["a"][0].tolist() == [0, 0, 0] and tree["b"][0].tolist() == [0, 0]
    assert type(tree["b"]) is tuple and tree["c"] == 1


def test_a_copy_of_parameters_has_no_graph():
    copy, _ = HostCopies().of({"w": torch.ones(2, requires_grad=True)})
    assert not copy["w"].requires_grad


class LateQueue:
    """In the place of a GPU: it copies what tensors are now, but not before it is waited for."""

    def __init__(self):
        self.made, self.queued = [], []

    def buffer(self, tensor):
        self.made.append(torch.full_like(tensor, -1))
        return self.made[-1]

    def copy(self, buffer, tensor):
        self.queued.append((buffer, tensor.clone()))

    def arrival(self):
        queued, self.queued = self.queued, []

        def wait():
            for buffer, tensor in queued:
                buffer.copy_(tensor)

        return wait


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setitem(QUEUES, "cpu", LateQueue())
    return QUEUES["cpu"]


def test_the_thread_waits_for_copies_that_are_queued(queue):
    tensor, seen = torch.zeros(3), []

    def look(tree):
        seen.append(tree["a"][0].tolist())

    with Writer() as writer:
        for _ in range(3):
            writer.write(look, {"a": [tensor]})
            tensor.add_(1)
    assert seen == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_the_next_copy_has_the_same_memory_once_the_call_before_is_done(queue):
    free, seen = threading.Event(), []

    def look(tree):
        assert free.wait(timeout=60)
        seen.append(tree["a"].tolist())

    with Writer() as writer:
        writer.write(look, {"a": torch.zeros(2)})
        threading.Timer(0.1, free.set).start()
        writer.write(look, {"a": torch.ones(2)})
        assert seen[0] == [0, 0]
    assert seen == [[0, 0], [1, 1]] and len(queue.made) == 1


def test_a_tensor_of_another_shape_type_or_place_has_memory_of_its_own(queue):
    trees = [{"a": torch.ones(2)}, {"a": torch.ones(3)}, {"b": torch.ones(3)}]
    trees += [{"b": torch.ones(3, dtype=torch.int64)}]
    copies = HostCopies()
    for tree in trees * 2:
        copy, arrived = copies.of(tree)
        arrived()
        assert all(torch.equal(copy[key], tensor) for key, tensor in tree.items())
    assert len(queue.made) == 8


def fail(tree):
    raise OSError(28, "No space left on device")


def test_an_error_comes_out_at_the_end():
    with pytest.raises(OSError, match="No space left"), Writer() as writer:
        writer.write(fail, {})


@pytest.mark.parametrize("more", [1, 3])
def test_after_an_error_nothing_is_written_that_builds_on_what_failed(more):
    """A last file would say that an older best one belongs to it."""
    written = []
    with pytest.raises(OSError, match="No space left"), Writer() as writer:
        writer.write(fail, {})
        for _ in range(more):
            writer.write(written.append, {})
    assert written == []


def test_an_error_of_the_run_goes_before_one_of_its_writing():
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        writer.write(fail, {})
        raise ZeroDivisionError


def test_steps_are_made_while_a_save_is_written(tmp_path, monkeypatch):
    """The first save waits until the third step is done; what it holds is the first step's."""
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)
    third, saved = threading.Event(), []

    def write(self, tree):
        assert saved or third.wait(timeout=60)
        saved.append(tree)
        return real(self, tree)

    real = RunFolder._write_last
    monkeypatch.setattr(RunFolder, "_write_last", write)
    model, seen = Averager(), []

    class Watch:
        def __call__(self, logits, batch):
            seen.append(weights(model))
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            if len(seen) == 3:
                third.set()
            return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")

    run(model, tmp_path, loss_fn=Watch())
    assert saved[0]["progress"]["step"] == 1
    assert same_bits(saved[0]["model"], seen[1]) and not same_bits(seen[1], seen[2])


def test_a_run_that_ends_has_written_everything(tmp_path):
    run(Averager(), tmp_path)
    tree = load_tree(run_path(tmp_path, "*/last.safetensors"))
    assert tree["progress"]["finished"] and folder(tmp_path, {"epochs": 1, "seed": 0}).best.exists()


def test_copies_that_arrive_late_make_the_same_files(tmp_path, queue, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)
    how = {"epochs": 3, "save_minutes": 0}
    run(Averager(), tmp_path / "late", **how)
    made = len(queue.made)
    monkeypatch.delitem(QUEUES, "cpu")
    run(Averager(), tmp_path / "now", **how)
    for name in ("best", "last"):
        late, now = (
            load_tree(run_path(tmp_path / f, f"*/{name}.safetensors")) for f in ("late", "now")
        )
        assert same_bits(late["model"], now["model"])
    tensors = len(late["model"])
    assert made == tensors + 3 * tensors + 1  # best: weights; last: these, moments, random state
