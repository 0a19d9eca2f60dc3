"""Which files of this repository go into a starter."""

import ast
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from course.handout.blanking import answers, code_lines
from course.handout.blanks import BLANKS
from engine.errors import InputError

LEFT_OUT = (  # folders and files of which a starter has nothing, or its own
    *("course", "tests", "benchmarks", "studies", "docs", ".ci", "engine/fast"),
    *("README.md", "CITATION.cff", "extensions/README.md"),
)
TECHNIQUES = ("extensions", "programs")
TELLING = 24  # characters of code in a line that no two files have by chance
BRANCH = re.compile(r"(if|for|while|with).*:$")  # lines of which this is not true


def tracked_files(root: Path) -> list[str]:
    """The files that git tracks; without a checkout, those that .gitignore does not name."""
    if (root / ".git").exists():
        names = _git(root, "ls-files", "-z", "--cached")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            _git(root, "init", "--quiet", "--bare", scratch)
            where = f"--git-dir={scratch}", f"--work-tree={root}"
            names = _git(root, *where, "ls-files", "-z", "--others", "--exclude-standard")
    files = sorted(set(filter(None, names.split("\0"))))
    if not files:
        raise InputError(f"{root}: git knows no file there: call it from a checkout or a copy")
    return files


def _git(root: Path, *words: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *words]
    try:
        run = subprocess.run(command, cwd=root, env=kept, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise InputError("git is not installed: it tells which files are handed out") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace")
        raise InputError(f"{' '.join(command[:2])}: {reason}: mend the checkout") from error
    return run.stdout.decode()


def starter_files(root: Path, *, extensions: bool = False) -> list[str]:
    """The tracked files that a starter has: techniques only if asked for, nothing that reveals."""
    left_out = LEFT_OUT if extensions else (*LEFT_OUT, *TECHNIQUES)
    names = [name for name in tracked_files(root) if not is_below(name, left_out)]
    hidden = revealing(root, names)
    return [name for name in names if not is_below(name, hidden)]


def is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def revealing(root: Path, names: list[str]) -> set[str]:
    """The modules that hold a line of an answer, and what cannot be imported without them.

    A program in a folder of its own is one of them as a whole.
    """
    code = [root / name for name in names if name.endswith(".py")]
    texts = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in code
        if path.is_file()
    }
    telling, asked = telling_lines(root), {blank.file for blank in BLANKS}
    held = [n for n, text in texts.items() if n not in asked and telling & set(code_lines(text))]
    found, imports = set(map(_unit, held)), {name: _imports(texts[name]) for name in texts}
    while True:
        missing = {"engine/fast", *found}
        more = {_unit(n) for n in texts if any(is_below(m, missing) for m in imports[n])} - found
        if not more:
            return found
        found |= more


def _unit(name: str) -> str:
    """The file, or the folder of a program."""
    top, *below = name.split("/")
    return f"{top}/{below[0]}" if top == "programs" else name


def _imports(text: str) -> set[str]:
    """What a module imports at its top level, as files and as folders."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    paths = {name.replace(".", "/") for name in found}
    return paths | {f"{path}.py" for path in paths}


def telling_lines(root: Path) -> set[str]:
    """The lines of all answers that are long enough to be told by, as `code_lines` gives them."""
    found = set()
    for file in {blank.file for blank in BLANKS}:
        source = (root / file).read_text(encoding="utf-8")
        for answer in answers(source, [blank for blank in BLANKS if blank.file == file]):
            lines = [line for line in code_lines(answer) if not BRANCH.match(line)]
            found |= {line for line in lines if len(line) >= TELLING}
    return found
