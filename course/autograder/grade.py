"""Grade one submission: its code in a process that is shut in, its predictions against the answers.

zip or folder ─unpack─▶ files ─Session─▶ tensors ─checks─▶ lines of the rubric ─▶ results.json
"""

import secrets
import tempfile
from pathlib import Path

from course import gold as answers
from course.archive import submission_root, unpack
from course.autograder import sandbox
from course.autograder.checks.hypotheses import Check, Draw
from course.autograder.results import Results
from course.autograder.rubric import CHECKS
from course.autograder.session import Failed, Limits, Session
from engine.errors import InputError, excerpt

CODE_BYTES = 20_000_000  # of all Python files; the rest is not given to the submission's process
RIGHT = "as expected"
PRINTED = 2_000  # characters that are kept of what the submission prints
SHADOWS = ("torch", "transformers", "numpy", "einops", "safetensors")
NOT_ROOT = (
    "the autograder does not run as root: the submission's code can read what you can read; grade "
    "only work that you trust, or in a container"
)


def grade(
    submission: Path,
    results: Results,
    *,
    gold: Path | None,
    split: str = "dev",
    limits: Limits | None = None,
) -> None:
    """Grade a zip, or an unpacked folder; results.json is up to date after every line."""
    with tempfile.TemporaryDirectory(prefix="submission-") as scratch:
        try:
            root = opened(Path(submission), Path(scratch))
            code = code_of(root)
        except InputError as error:
            results.refuse(str(error))
            return
        results.output = "\n".join(notes(root))
        results.extra["isolation"] = sandbox.degree()
        grade_code(code, results, limits or Limits())
        if gold is not None:
            grade_predictions(root, Path(gold), split, results)
        results.write()


def opened(submission: Path, scratch: Path) -> Path:
    """The folder of a submission, unpacked if it is a zip.

    Gradescope unpacks an upload that is one zip, so a folder may also hold just that zip.
    """
    if submission.is_dir():
        root = submission_root(submission)
        files = [path for path in root.iterdir() if path.is_file()]
        zips = [path for path in files if path.suffix == ".zip"]
        if len(zips) != 1 or any(path.suffix == ".py" for path in files):
            return root
        submission = zips[0]
    if not submission.is_file():
        raise InputError(f"{submission}: no such file: give a submission's zip or folder")
    unpack(submission, scratch / "files")
    return submission_root(scratch / "files")


def code_of(root: Path) -> dict[str, Path]:
    """Name -> file of the Python files; hidden folders and links are left out."""
    found, total = {}, 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        real = path.resolve() == root.resolve() / name
        if hidden or not real or not path.is_file():
            continue
        total += path.stat().st_size
        if total > CODE_BYTES or len(found) >= 2000:
            raise InputError(f"{name}: more than 2,000 files or 20 MB of Python: leave data out")
        found[name.as_posix()] = path
    if not found:
        raise InputError("no Python files: zip the project by python prepare_submit.py")
    return found


def notes(root: Path) -> list[str]:
    """What staff or student should know beside the lines."""
    shadows = [name for name in SHADOWS if (root / name).exists() or (root / f"{name}.py").exists()]
    said = [f"{name} in the submission is not used: the library is" for name in shadows]
    return said + [NOT_ROOT] * (sandbox.degree() == "limits")


def grade_code(code: dict[str, Path], results: Results, limits: Limits) -> None:
    """Run every check; a check whose process dies costs its own lines alone."""
    with Session(code, limits) as session:
        for check in CHECKS:
            problems = measured(check, session)
            for line in check.lines:
                problem = problems.get(line)
                share, output = (0.0, problem) if problem else (1.0, RIGHT)
                results.set(check.section, line, share=share, output=output)
        printed = session.output.decode(errors="replace")
        results.extra["printed"] = excerpt(printed, PRINTED)
        results.extra["seconds of code"] = round(limits.total - session.left, 1)


def measured(check: Check, session: Session) -> dict[str, str]:
    """Line -> what is wrong. The inputs' seed is drawn after the submission's process has begun."""
    session.start()
    try:
        return check.measure(session.ask, Draw(secrets.randbits(62)))
    except Failed as failure:
        problem = str(failure)
    except (
        KeyError,
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # of forged tensors
        problem = f"the tensors have another form than was asked for ({excerpt(error)})"
    return dict.fromkeys(check.lines, problem)


def grade_predictions(root: Path, gold: Path, split: str, results: Results) -> None:
    """The points and the leaderboard's figures of each prediction file."""
    for name, scored in answers.score(root, gold, split).items():
        if scored.problem:
            results.set("predictions", name, share=0.0, output=scored.problem)
            continue
        results.add_figures(name, scored.figures)
        share = results.rubric.aims[name].share(scored.figures)
        figures = ", ".join(f"{key} {value:.3f}" for key, value in scored.figures.items())
        results.set("predictions", name, share=share, output=figures)


def close_folders(*folders: Path) -> None:
    """Let root alone into the folders of the grader, of submissions and of results."""
    for folder in folders:
        if folder.is_dir():
            folder.chmod(0o700)
