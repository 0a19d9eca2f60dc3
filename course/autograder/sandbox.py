"""Start a submission's process where it can read nothing but its own files, and end all of it.

Three degrees, the best that the machine allows:

    namespaces   root with CAP_SYS_ADMIN: another user, a root folder of read-only views (Python,
                 five packages, the submission), no other processes, no network
    user         root in a plain container, as on Gradescope: another user; folders are closed to it
                 by their modes
    limits       not root: the limits below alone, which is for work that one trusts

In each, limits of time, memory, files and processes hold, and a seccomp filter (inside/restrict.py)
refuses sockets, new processes and looking into others.
"""

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.files import ROOT

INSIDE = Path(__file__).with_name("inside")
PACKAGES = (  # what torch, numpy, einops and safetensors import
    *("torch", "torchgen", "functorch", "numpy", "numpy.libs", "einops", "safetensors"),
    *("typing_extensions.py", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock"),
    *("fsspec", "packaging"),
)
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
UNSHARE = ("unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child")
USERS = range(61_000, 65_000)  # ids that no system gives away
LIMITS = {"processes": 64, "file_bytes": 0, "files": 256, "core": 0}
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
START = (
    "import sys; sys.path[:0] = {paths!r}; from course.autograder.inside.runner import serve; "
    "serve({folder!r}, {requests}, {replies}, {memory})"
)


@functools.cache
def degree() -> str:
    """Which of the three this machine allows."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "limits"
    try:
        allowed = subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return "namespaces" if allowed else "user"


@dataclass
class Box:
    """A submission's process and the ends of its pipes."""

    process: subprocess.Popen
    requests: int
    replies: int
    user: int | None
    degree: str

    def close(self) -> int:
        """Kill all that runs in the box; returns how its process ended, as Popen says."""
        code = self.process.poll()
        self.process.kill()
        if self.user and self.degree == "user":
            kill_user(self.user)
        elif self.degree == "limits":
            _kill_group(self.process.pid)
        self.process.wait()
        for descriptor in (self.requests, self.replies):
            os.close(descriptor)
        self.process.stdout.close()
        return self.process.returncode if code is None else code


def kill_user(user: int) -> None:
    """Kill every process of a user, those that are being started too: kill(-1) leaves none out."""
    alone = {"user": user, "group": user, "extra_groups": [], "cwd": "/"}
    subprocess.run(["/bin/sh", "-c", "kill -KILL -1"], **alone, capture_output=True)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def prepare(folder: Path) -> None:
    """Make the folder of a box: what runs inside, and a place for the submission's files."""
    for file in (*INSIDE.glob("*.py"), INSIDE.parent / "__init__.py", ROOT / "course/__init__.py"):
        target = folder / "inside" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    checkpoint = folder / "inside" / INSIDE.relative_to(ROOT) / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"vocab_size": 50257}', encoding="utf-8")
    (checkpoint / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "submission").mkdir()
    (folder / "root").mkdir()
    folder.chmod(0o711)


def open_box(folder: Path, *, memory: int, seconds: int) -> Box:
    """Start the process on a prepared folder. memory: bytes beyond torch; seconds: of CPU."""
    here, user = degree(), secrets.choice(USERS) if os.geteuid() == 0 else None
    request_end, requests = os.pipe()
    replies, reply_end = os.pipe()
    views, paths = views_of(folder) if here == "namespaces" else ([], [str(folder / "inside")])
    site = [] if here == "namespaces" else [_site_of("torch")]
    inner = "/work/submission" if here == "namespaces" else str(folder / "submission")
    program = START.format(
        paths=[*paths, *site],
        folder=inner,
        requests=request_end,
        replies=reply_end,
        memory=memory,
    )
    spec = {
        "root": str(folder / "root") if here == "namespaces" else None,
        "views": views,
        "folder": inner,
        "user": user,
        "limits": LIMITS | {"seconds": seconds},
        "command": [sys._base_executable, "-I", "-S", "-B", "-u", "-X", "utf8", "-c", program],
        "environment": ENVIRONMENT | {"HOME": inner},
    }
    if user is None:
        del spec["limits"]["processes"]  # they would be counted with the user's own
    prefix = [*UNSHARE] if here == "namespaces" else []
    process = subprocess.Popen(
        [*prefix, sys.executable, "-I", "-S", str(INSIDE / "confine.py"), json.dumps(spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(request_end, reply_end),
        start_new_session=True,
        env=ENVIRONMENT,
    )
    os.close(request_end)
    os.close(reply_end)
    for descriptor in (requests, replies, process.stdout.fileno()):
        os.set_blocking(descriptor, False)
    return Box(process, requests, replies, user, here)


def _site_of(package: str) -> str:
    """The folder from which a package is imported."""
    return str(Path(importlib.util.find_spec(package).origin).parents[1])


def views_of(folder: Path) -> tuple[list[list[str]], list[str]]:
    """The views (there, here) of a box's root, and the folders of modules in it."""
    views = [[path, path] for path in SYSTEM if os.path.exists(path)]
    python = Path(sys.base_prefix).resolve()
    if not python.is_relative_to("/usr"):
        views.append([str(python), str(python)])
    for package in PACKAGES:
        spec = importlib.util.find_spec(package.removesuffix(".py").split(".")[0])
        site = Path(spec.origin).parent if spec and spec.origin else None
        site = site.parent if site and not package.endswith(".py") else site
        if site and (site / package).exists():
            views.append([str(site / package), f"/site/{package}"])
    views.append([str(folder / "inside"), "/work/inside"])
    views.append([str(folder / "submission"), "/work/submission"])
    return views, ["/work/inside", "/site"]
