"""autograder.zip, as Gradescope wants it: setup.sh and run_autograder at the top."""

import tempfile
from pathlib import Path

from course.gold import gold_file, scored
from engine.errors import InputError
from engine.files import ROOT
from engine.submission_code import code_files
from prepare_submit import write_zip

SCRIPTS = Path(__file__).with_name("gradescope")
PLACE = "torch_index=''"  # in setup.sh


def build(out: Path, *, points: Path, gold: Path | None, split: str, torch_index: str) -> list[str]:
    """Write the zip and return the names in it, sorted.

    gold: the folder of answers, of which those of the split go into the zip. torch_index: the
    package index of torch's CPU build; "": pip's own.
    """
    files = {name: ROOT / name for name in code_files(ROOT) if name.endswith(".py")}
    for path in (*(ROOT / "course").glob("*.py"), *(ROOT / "course" / "autograder").rglob("*.py")):
        files[path.relative_to(ROOT).as_posix()] = path
    files |= {
        "course/autograder/points.toml": points,
        "requirements.txt": ROOT / "requirements.txt",
    }
    if gold:
        names = {gold_file(wanted, split) for _, wanted in scored(gold, split).values()}
        files |= {f"gold/{name}": Path(gold) / name for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        for script, text in scripts(split, torch_index).items():
            files[script] = Path(scratch) / script
            files[script].write_text(text, encoding="utf-8")
        write_zip(out, files)
    return sorted(files)


def scripts(split: str, torch_index: str) -> dict[str, str]:
    """The two scripts, with the split of the answers and torch's index written into them."""
    if not all(c.isalnum() or c in ":/._-+" for c in torch_index):
        raise InputError(f"--torch_index {torch_index!r}: expected the URL of a package index")
    texts = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS.iterdir()}
    texts["setup.sh"] = texts["setup.sh"].replace(PLACE, f"torch_index='{torch_index}'")
    texts["run_autograder"] = texts["run_autograder"].replace("split=dev", f"split={split}")
    return texts
