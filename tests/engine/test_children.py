"""Children end with their parent, and are otherwise as Python itself would have started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.children import start_child
from engine.files import ROOT

PROGRAM = """
import sys, time
import beside
print(sys.argv, __name__, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""
PARENT = """
import os, pathlib, signal, subprocess, sys
sys.path.insert(0, {root!r})
from engine.children import start_child

child = {start}
pathlib.Path("child").write_text(str(child.pid))
child.stdout.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
WORKER = """
import sys, time
sys.path.insert(0, {root!r})
from engine.children import end_with_launcher
from engine.signals import LAUNCHER

print("its launcher ends while it imports torch", flush=True)
time.sleep(1)
end_with_launcher(LAUNCHER)
time.sleep(60)
"""
STARTS = [
    'start_child(["program.py", "60", "0"], stdout=subprocess.PIPE)',
    'subprocess.Popen([sys.executable, "worker.py"], stdout=subprocess.PIPE)',
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "worker.py").write_text(WORKER.format(root=str(ROOT)), encoding="utf-8")
    (tmp_path / "beside.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def ends(pid: int) -> bool:
    """Whether a process is gone within ten seconds; then it goes in any case."""
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_child_has_its_flags_its_folder_and_its_exit_code(place):
    child = start_child(["program.py", 0, 7], stdout=subprocess.PIPE, text=True)
    assert child.stdout.read() == "['program.py', '0', '7'] __main__\n"
    assert child.wait() == 7


def test_a_module_is_started_by_its_name(place):
    child = start_child(["-m", "program", 0, 7], stdout=subprocess.PIPE, text=True)
    assert child.stdout.read() == f"['{place / 'program.py'}', '0', '7'] __main__\n"
    assert child.wait() == 7


def test_a_child_can_be_stopped(place):
    child = start_child(["program.py", 60, 0], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline()
    child.terminate()
    assert child.wait(10) == -signal.SIGTERM


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("start", STARTS, ids=["a child", "a worker"])
def test_a_child_of_a_killed_parent_ends(start, place):
    code = PARENT.format(root=str(ROOT), start=start)
    (place / "parent.py").write_text(code, encoding="utf-8")
    killed = subprocess.run([sys.executable, "parent.py"], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert ends(int((place / "child").read_text(encoding="utf-8")))
