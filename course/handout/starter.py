"""Make the starter that students get: the project without the bodies that they write.

python -m course.handout OUT                      what students get
python -m course.handout OUT --with-extensions    with the techniques that give nothing away
python -m course.handout OUT --solution           the same files, filled in
"""

from engine.errors import InputError, Parser, command, some

# isort: split

import shutil
from collections.abc import Iterable
from pathlib import Path

from course.handout.blanking import blanked
from course.handout.blanks import BLANKS, Blank
from course.handout.tracked import is_below, starter_files, tracked_files
from engine.files import ROOT, atomic_folder

OURS = "course/handout"  # beside the code of this package: what is written for students
ADDED = {  # in the repository -> in the starter
    f"{OURS}/tests": "tests",
    f"{OURS}/README.md": "README.md",
    "course/handout.md": "handout.md",
    "course/figures": "figures",
}


def added_files(root: Path) -> dict[str, str]:
    """Tracked file -> its place in the starter, of those that are for students alone."""
    return {
        name: there + name.removeprefix(here)
        for name in tracked_files(root)
        for here, there in ADDED.items()
        if is_below(name, [here])
    }


def write_starter(
    root: Path, out: Path, blanks: Iterable[Blank] = BLANKS, *, extensions: bool = False
) -> int:
    """Write the starter with these bodies left out; returns the number of its files.

    A folder that is there already must be empty. The starter appears whole or not at all.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file, expected a new folder: choose another one")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: not empty: choose a new folder, or delete this one")
    files = {name: name for name in starter_files(root, extensions=extensions)}
    files |= added_files(root)
    if missing := [name for name in files if not (root / name).is_file()]:
        raise InputError(f"git tracks files that are not there: {some(missing)}: put them back")
    left_out: dict[str, list[Blank]] = {}
    for blank in blanks:
        left_out.setdefault(blank.file, []).append(blank)
    with atomic_folder(out) as folder:
        for name, place in files.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, path)
            if name in left_out:
                source = path.read_text(encoding="utf-8")
                path.write_text(blanked(source, left_out[name]), encoding="utf-8")
    return len(files)


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument(
        "--with-extensions",
        action="store_true",
        help="with extensions/ and programs/, as far as they give nothing away",
    )
    parser.add_argument("--solution", action="store_true", help="the same files, filled in")
    args = parser.parse_args(argv)
    blanks = () if args.solution else BLANKS
    count = write_starter(ROOT, args.out, blanks, extensions=args.with_extensions)
    print(f"{args.out}: {count} files, {len(blanks)} bodies to write")
