"""Times and memory: peers alternate, a process of its own knows its own peak."""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.timing import FORGET, Alone, alone, alternate, forget_peak, seconds
from engine.devices import peak_mb
from engine.errors import InputError
from engine.files import ROOT

CPU = torch.device("cpu")


class Counter:
    """Something to be kept in another process."""

    def __init__(self, start: int):
        if start < 0:
            raise InputError("below 0")
        self.count = start

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def process(self) -> int:
        return os.getpid()


def test_an_object_stays_in_a_process_of_its_own_between_turns():
    counter = Alone(Counter, 5)
    try:
        assert [counter.ask("add", 1), counter.ask("add", 2)] == [6, 8]
        assert counter.ask("process") == counter.ask("process") != os.getpid()
    finally:
        counter.close()


def test_errors_of_the_process_are_raised_in_its_parent():
    with pytest.raises(InputError, match="below 0"):
        Alone(Counter, -1)
    assert alone(divmod, 7, 2) == (3, 1)


def test_a_warm_up_round_comes_first_and_peers_take_turns():
    calls = []

    def timer(name):
        calls.append(name)
        return float(len(calls))

    times = alternate({"a": lambda: timer("a"), "b": lambda: timer("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert times == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def use_and_give_back(size: int) -> None:
    """Memory that the process does not keep, whatever its allocator does."""
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, 4096):
            memory[start] = 1


def test_memory_that_was_given_back_still_counts_until_it_is_forgotten():
    use_and_give_back(2**28)
    before = peak_mb(CPU)
    if not (FORGET.exists() and os.access(FORGET, os.W_OK)):
        pytest.skip("this system cannot forget a peak")
    forget_peak(CPU)
    assert peak_mb(CPU) < before - 100
    use_and_give_back(2**28)
    assert peak_mb(CPU) > before - 100


def test_seconds_are_those_of_the_call():
    assert 0 <= seconds(lambda: None) < 1


ORPHANS = """
import os, pathlib, signal, sys
sys.path.insert(0, {root!r})
from benchmarks.timing import Alone

if __name__ == "__main__":
    [child] = Alone(dict).pool._processes
    pathlib.Path("child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_the_process_of_an_object_ends_with_the_one_that_started_it(tmp_path):
    """Even if that is killed: a peer's model would stay in memory."""
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS.format(root=str(ROOT)), encoding="utf-8")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.run([sys.executable, script], cwd=tmp_path, timeout=60, **quiet)
    assert killed.returncode == -signal.SIGKILL
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it is still there")


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
