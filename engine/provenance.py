"""Where the numbers of a run come from: the commit of the code, and the command."""

import shlex
import subprocess
import sys
from pathlib import Path

from engine.files import ROOT

CODE = (".", ":(exclude)*.md", ":(exclude)*/results/*")  # not pages, nor what was measured
CHANGES, UNKNOWN = "+changes", "unknown"  # of a commit


def current_command() -> str:
    """The command line of this process, as a person types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = ["-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *name, *sys.argv[1:]])


def current_commit() -> str:
    """The commit of the code, with "+changes" if tracked code differs; "unknown" without git."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("rev-parse", "HEAD") + (CHANGES if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
