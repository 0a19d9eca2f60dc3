"""Shut this process in, then become the submission's: run by the grader, as root where it can.

    python -I -S confine.py SPEC        SPEC: JSON, made by course/autograder/sandbox.py

With `root`, this process is already in namespaces of its own (mounts, processes, network); a new
root is built of read-only views of the folders in `views`, and all else is out of sight.
"""

import ctypes
import json
import os
import resource
import signal
import sys

READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE = 1, 2, 4, 32, 4096, 16384
PARENT_DEATH = 1  # prctl: a signal when the grader dies
LIMITS = {
    "processes": resource.RLIMIT_NPROC,
    "seconds": resource.RLIMIT_CPU,
    "file_bytes": resource.RLIMIT_FSIZE,
    "files": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
}


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [word.encode() for word in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def build_root(root: str, views: list[list[str]]) -> None:
    """Mount the views (there, here) below a new root, and go there."""
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, "size=1m,mode=755")
    for there, here in views:
        target = root + here
        if os.path.islink(there):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(there), target)
            continue
        os.makedirs(target if os.path.isdir(there) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(there):
            os.close(os.open(target, os.O_CREAT))
        mount(there, target, "", BIND | RECURSIVE)
        devices = 0 if there.startswith("/dev/") else NO_DEVICES
        mount("", target, "", BIND | REMOUNT | READ_ONLY | NO_SUID | devices)
    os.makedirs(f"{root}/proc")
    mount("proc", f"{root}/proc", "proc", NO_SUID | NO_DEVICES)
    os.makedirs(f"{root}/tmp", mode=0o555)
    mount("", root, "", BIND | REMOUNT | READ_ONLY | NO_SUID | NO_DEVICES)
    os.chroot(root)


def shut_in() -> None:
    spec = json.loads(sys.argv[1])
    if spec["root"]:
        build_root(spec["root"], spec["views"])
    os.chdir(spec["folder"])
    if spec["user"]:
        os.setgroups([])
        os.setresgid(*[spec["user"]] * 3)
    for name, value in spec["limits"].items():
        _, most = resource.getrlimit(LIMITS[name])
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(LIMITS[name], (value, value))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")  # where memory runs out, this process is to go, not the grader
    except OSError:
        pass  # only Linux has it
    if spec["user"]:
        os.setresuid(*[spec["user"]] * 3)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    os.execve(spec["command"][0], spec["command"], spec["environment"])


if __name__ == "__main__":
    shut_in()
