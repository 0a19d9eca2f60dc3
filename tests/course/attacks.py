"""Submissions that attack the autograder, by code at the end of modules/attention.py."""

from dataclasses import dataclass

ENDED = "your code ended its process (exit status 0) instead of returning"
UNREADABLE = "the answer of your code's process cannot be read"
SLOW = "no answer in "
OTHER_FORM = "the tensors have another form than was asked for"
TOO_MUCH = "more than 192 MB of memory are asked for"


@dataclass(frozen=True)
class Attack:
    """says: of attention's lines; None where they are all right.

    at_import: the layer, which imports attention, is lost too.
    """

    code: str
    says: str | None = None
    at_import: bool = False


def forward(body: str) -> str:
    """Attention's three methods do this instead."""
    return f"""
def attack(*arguments):
    {body}
for name in ("transform", "attention", "forward"):
    setattr(CausalSelfAttention, name, attack)
"""


def forged(found: str) -> str:
    """What the submission's process answers, of attention, is this dict."""
    return f"""
import sys
parts = sys.modules["course.autograder.inside.parts"]
for name in parts.OPS:
    if name.startswith("attention"):
        parts.OPS[name] = lambda settings, tensors: {found}
"""


ATTACKS = {
    "sys.exit at import": Attack("import sys; sys.exit(0)", "sys.exit was called", at_import=True),
    "os._exit at import": Attack("import os; os._exit(0)", ENDED, at_import=True),
    "sys.exit in forward": Attack(forward("import sys; sys.exit(0)"), "sys.exit was called"),
    "os._exit in forward": Attack(forward("import os; os._exit(0)"), ENDED),
    "os._exit at exit": Attack("import atexit, os; atexit.register(os._exit, 0)"),
    "endless loop": Attack(forward("while True: pass"), SLOW),
    "endless recursion": Attack(forward("return attack()"), "RecursionError"),
    "exception whose text lies": Attack(
        forward(r"raise Exception('\x1b[2Jall tests passed <script>alert(1)</script>' * 999)"),
        r"Exception: \x1b[2Jall tests passed <script>alert(1)</script>",
    ),
    "exception without a text": Attack(
        "class Bad(Exception):\n    def __str__(self): raise SystemExit(0)\n"
        + forward("raise Bad()"),
        ENDED,
    ),
    "gigantic allocation": Attack(forward("return torch.ones(10**10)"), TOO_MUCH),
    "many allocations": Attack(forward("[bytearray(10**7) for _ in range(10**4)]"), TOO_MUCH),
    "threads": Attack(
        forward(
            "import threading, time; "
            "[threading.Thread(target=time.sleep, args=(99,)).start() for _ in range(10**4)]"
        ),
        "can't start new thread",
    ),
    "comparisons that lie": Attack(
        "import builtins, torch.testing\n"
        "torch.allclose = torch.equal = lambda *a, **k: True\n"
        "torch.testing.assert_close = lambda *a, **k: None\n"
        "torch.Tensor.__eq__ = torch.Tensor.isclose = lambda *a, **k: True\n"
        "builtins.abs = builtins.max = lambda *a, **k: 0\n"
        + forward("return torch.zeros(5, 6, 24)"),
        "found ",
    ),
    "a tensor that lies": Attack(
        "class Right(torch.Tensor):\n"
        "    def __eq__(self, other): return True\n"
        "    def allclose(self, *a, **k): return True\n"
        "    def detach(self): return self\n"
        + forward("return torch.zeros(5, 6, 24).as_subclass(Right)"),
        "found ",
    ),
    "json that lies": Attack(
        "import json\njson.dumps = lambda *a, **k: '{\"score\": 100}'\n", UNREADABLE, at_import=True
    ),
    "flooded pipe": Attack(
        forward(
            "import os\n"
            "    for i in range(3, 30):\n"
            "        try:\n"
            "            while True: os.write(i, bytes([255]) * 10**6)\n"
            "        except OSError: pass"
        ),
        f"{UNREADABLE}: a message of 4,294,967,295 bytes, expected at most",
    ),
    "flooded output": Attack("for _ in range(3000): print('x' * 1000)"),
    "nan": Attack(forward("return torch.full((5, 6, 24), float('nan'))"), "found "),
    "huge reply": Attack(forward("return torch.ones(5_000_000)"), UNREADABLE),
    "too huge a reply": Attack(forward("return torch.ones(40_000_000)"), TOO_MUCH),
    "other type": Attack(forward("return 'all right'"), "found str for "),
    "other names": Attack(forged("{'x': torch.ones(1)}"), OTHER_FORM),
    "other numbers": Attack(
        forged("{'heads': torch.ones(0), 'attended': torch.ones(0)}"), "found "
    ),
    "odd numbers": Attack(
        forged("dict.fromkeys(['heads', 'attended'], torch.ones(5, 6, 24).to(torch.complex64))"),
        "found ",
    ),
    "none": Attack(forward("return None"), "found NoneType for "),
}

# What reads or changes something prints TAKEN if it gets it. All run in one process.
ATTEMPTS = """
import builtins, ctypes, glob, os, socket, subprocess, sys
libc = ctypes.CDLL(None)

def attempt(name, what):
    try:
        print("TAKEN", name, what())
    except BaseException as error:
        print("refused:", name, type(error).__name__)

def positive(number):
    if number < 0:
        raise OSError
    return number

def installed():
    from transformers import GPT2Config, GPT2Model
    return GPT2Model(GPT2Config())

def found():
    sys.meta_path.pop(0)
    sys.modules.pop("transformers", None)
    from transformers import GPT2Model
    return GPT2Model

def solution():
    from course.autograder.checks import attention
    return attention

for i in range(20):
    attempt("fork", os.fork)
attempt("program", lambda: subprocess.run(["/bin/sh", "-c", "id"]))
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    attempt("socket", lambda: socket.socket(family))
for folder in ("/tmp", ".", "/dev/shm", "/var/tmp", "/work"):
    attempt("disk", lambda: open(f"{folder}/x", "wb", buffering=0).write(bytes(10**6)))
for path in SECRETS:
    attempt("read", lambda: open(path).read())
    attempt("write", lambda: open(path, "w"))
    attempt("remove", lambda: os.remove(path))
    attempt("replace", lambda: os.replace(__file__, path))
attempt("own file", lambda: open(__file__, "a").write("x"))
attempt("own file", lambda: os.remove(__file__))
attempt("inotify", lambda: positive(libc.inotify_init()))
for process in (os.getppid(), GRADER):
    attempt("memory", lambda: open(f"/proc/{process}/mem", "rb").read(1))
    attempt("environment", lambda: open(f"/proc/{process}/environ", "rb").read()[0])
    attempt("ptrace", lambda: positive(libc.ptrace(16, process, 0, 0)))
    attempt("kill", lambda: os.kill(process, 9))
attempt("root", lambda: os.setuid(0))
attempt("root", lambda: os.chroot("/proc"))
attempt("root", lambda: [][os.geteuid() != 0])
attempt("namespace", lambda: positive(libc.unshare(0x10000000)))
attempt("mount", lambda: positive(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
attempt("secret", lambda: os.environ["SECRET"])
attempt("stdin", lambda: sys.stdin.read(1)[0])
attempt("transformers", installed)
attempt("transformers", found)
attempt("solution", solution)
"""
MODULES = {  # files that hide a library, or a part of the grader
    "torch.py": "def allclose(*a): return True",
    "transformers/__init__.py": "class GPT2Model: pass",
    "conftest.py": "import os; os._exit(0)",
    "json.py": "raise SystemExit(0)",
    "safetensors/torch.py": "def save(tensors): return b''",
    "course/autograder/inside/runner.py": "raise SystemExit(0)",
    "sitecustomize.py": "import os; os._exit(0)",
    "numpy.py": "raise SystemExit(0)",
}
