"""A thread writes what training saves; training waits for it only where it must."""

import threading

import pytest
import torch
from tiny_run import Averager, folder, no_picture, run, run_path, same_bits, weights

from engine.checkpoint import RunFolder
from engine.trees import load_tree
from engine.writer import Writer, copied


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


def test_the_caller_goes_on_while_two_calls_wait_and_not_while_three_do():
    free, begun = threading.Event(), []

    def wait(tree):
        assert free.wait(timeout=60)

    with Writer() as writer:
        for _ in range(2):
            writer.write(wait, {})
        third = threading.Thread(
            target=lambda: (writer.write(wait, {}), begun.append("third")), daemon=True
        )
        third.start()
        third.join(timeout=0.2)
        assert begun == []
        free.set()
        third.join()
    assert begun == ["third"]


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
    assert not copied({"w": torch.ones(2, requires_grad=True)})["w"].requires_grad


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
            if len(seen) == 3:
                third.set()
            return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")

    run(model, tmp_path, loss_fn=Watch(), save_minutes=0)
    assert saved[0]["progress"]["step"] == 1
    assert same_bits(saved[0]["model"], seen[1]) and not same_bits(seen[1], seen[2])


def test_a_run_that_ends_has_written_everything(tmp_path):
    run(Averager(), tmp_path)
    tree = load_tree(run_path(tmp_path, "*/last.safetensors"))
    assert tree["progress"]["finished"] and folder(tmp_path, {"epochs": 1, "seed": 0}).best.exists()
