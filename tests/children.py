"""Actions in a child process, which may be killed at any moment of its writing."""

import importlib
import os
import signal
import socket
import sys
import time
import traceback

import pytest
import torch

from engine import files, parallel

LIBRARIES = (
    *("torch._dynamo", "torch.distributed.fsdp"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.gpt2.modeling_gpt2"),
)


def skip_if_cuda() -> None:
    """Skip a test that forks where there is a GPU: CUDA's state does not survive a fork.

    An optimizer's step asks CUDA whether it records a graph, also for a CPU's tensors. After one
    in the parent, that is an error in each child.
    """
    if torch.cuda.is_available():
        pytest.skip("CUDA does not survive a fork: set CUDA_VISIBLE_DEVICES= to run this test")


def load_libraries() -> None:
    """Import, once and not in each forked process, what takes programs seconds."""
    for name in LIBRARIES:
        importlib.import_module(name)


def in_child(action) -> int:
    """Run in a forked process; returns how it ended, as `os.waitpid` says."""
    skip_if_cuda()
    load_libraries()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            action()
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def at_write(monkeypatch, number: int, action) -> None:
    """Do something at the nth fsync: between writing a file and giving it its name, or after."""
    count, sync = iter(range(1, 10_000)), files.sync

    def counting(path):
        if next(count) == number:
            action()
        sync(path)

    monkeypatch.setattr(files, "sync", counting)


def in_workers(action, count: int = 2, seconds: float = 120) -> None:
    """Run in forked processes, as torchrun would start them; all must end well, and in time."""
    load_libraries()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    children = {}
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _work(action, {**group, "RANK": rank, "LOCAL_RANK": rank})
        children[child] = rank
    codes, end = {}, time.monotonic() + seconds
    while len(codes) < count and not any(codes.values()) and time.monotonic() < end:
        for child in children.keys() - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for child in children.keys() - codes.keys():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert codes == dict.fromkeys(children, 0), {children[child]: codes[child] for child in codes}


def _work(action, environment: dict) -> None:
    """What a forked worker does; it never returns."""
    code = 99
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        parallel.LAUNCHER = os.getppid()  # this process was forked, not started by torchrun
        action()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
