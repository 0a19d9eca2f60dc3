"""Which code a submission holds: what its programs import, and the regular files beside that."""

import ast
import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

from engine.files import ROOT

PROGRAMS = (
    *("classifier.py", "paraphrase_detection.py", "sonnet_generation.py", "evaluation.py"),
    *("sanity_check.py", "optimizer_test.py", "prepare_submit.py", "data/download.py"),
)
REQUIRED_FILES = (  # beside Python's: what a person reads, and what sets the tree up
    *("README.md", "setup.sh", "env.yml", "requirements.txt", "optimizer_test.npy"),
    "predictions/README.md",
)
FURTHER_CODE = (
    *("*.py", "engine/*.py", "engine/*/*.py", "modules/*.py", "models/*.py"),
    *("extensions/*.py", "extensions/README.md", "programs/*.py", "programs/*/*.py"),
)


_parsed = functools.cache(ast.parse)  # a submission is looked through several times


def required_code(root: Path) -> list[str]:
    """What a submission needs to run: the course's programs, and all that they import of the tree.

    What a module imports only inside a function is not among it.
    """
    names, waiting = set(REQUIRED_FILES), list(PROGRAMS)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += _imported_files(root, name)
    return sorted(names)


def _imported_files(root: Path, name: str) -> list[str]:
    """The files of the tree that a module imports at its top level, be they there or not."""
    try:
        tree = _parsed((root / name).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # a missing file is told by `check`
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [_file_of(root, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(_file_of(root, node.module))
            if (found[-1] or "").endswith("__init__.py"):  # its names may be modules below it
                init = root / found[-1]
                inside = init.read_text(encoding="utf-8") if init.is_file() else ""
                below = [alias.name for alias in node.names if alias.name not in inside]
                found += [_file_of(root, f"{node.module}.{name}") for name in below]
    return [name for name in found if name]


def _file_of(root: Path, module: str) -> str | None:
    """The path of one of the tree's own modules; None for Python's and installed ones."""
    package, path = module.split(".")[0], module.replace(".", "/")
    if package in sys.stdlib_module_names:
        return None
    if (root / path).is_dir():
        return f"{path}/__init__.py"
    if not (root / f"{path}.py").is_file() and not (root / package).is_dir():
        spec = importlib.util.find_spec(package)
        if spec and Path(spec.origin or "").parent not in (ROOT, ROOT / package):
            return None
    return f"{path}.py"


def code_files(root: Path) -> list[str]:
    """The code that is there: what is required, and what it may import."""
    paths = [root / name for name in required_code(root)]
    for pattern in FURTHER_CODE:
        paths += root.glob(pattern)
    names = {path.relative_to(root).as_posix() for path in paths if path.is_file()}
    return sorted(name for name in names if not Path(name).name.startswith("."))


def is_inside(root: Path, name: str) -> bool:
    """Whether a file of the tree is there itself: neither it nor a folder above it is a link."""
    return (root / name).resolve() == root.resolve() / name


def untracked(root: Path, names: list[str]) -> list[str]:
    """Those files of a tree that git does not track; none where git does not keep this tree."""
    try:
        top = _git(root, "rev-parse", "--show-toplevel").strip()
        tracked = _git(root, "ls-files", "-z", "--cached").split("\0")
    except (OSError, subprocess.CalledProcessError):
        return []
    if Path(top).resolve() != root.resolve():
        return []  # a repository above it
    return sorted(set(names) - set(tracked))


def _git(root: Path, *words: str) -> str:
    run = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return run.stdout
