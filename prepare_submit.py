"""Check the submission, name all that is wrong with it at once, and only then zip it.

python prepare_submit.py    writes cs224n_default_final_project_submission.zip

Equal files give a zip of equal bytes. The sentiment predictions are in it under two names, as the
handouts of different years ask for them: finetune = full-model, pretrain = last-linear-layer.
"""

import sys
import zipfile
from pathlib import Path

from engine.errors import InputError, Parser, command, excerpt
from engine.files import ROOT, atomic_write

# isort: split

from engine.prediction_files import origin
from engine.submission_code import code_files, is_inside, required_code, untracked
from engine.submission_form import LATER_NAMES, required_predictions

ZIP_NAME = "cs224n_default_final_project_submission.zip"
SHOWN = 10  # lines told of one file: a thousand alike say no more
PUT_BACK = "put it back: the submission needs it"
NO_LINK = "put a copy in its place, or remove it"
GET_DATA = "python data/download.py"


def check(root: Path, data_dir: Path) -> dict[str, list[str]]:
    """Everything that is wrong: file -> its problems, the last one being what to do."""
    wrong, references = _code_problems(root), {}
    for name, wanted in required_predictions().items():
        if wanted.data not in references:
            try:
                references[wanted.data] = wanted.ids(data_dir)
            except InputError as error:
                references[wanted.data] = None
                problem = str(error).removeprefix(f"{data_dir / wanted.data}").lstrip(":, ")
                wrong[str(data_dir / wanted.data)] = [problem, GET_DATA]
        if name in wrong:
            continue
        try:
            problems = wanted.problems(_text(root / name), references[wanted.data])
        except InputError as error:
            problems = [str(error)]
        if len(problems) > SHOWN:
            problems[SHOWN:] = [f"and {len(problems) - SHOWN} more problems"]
        if problems:
            wrong[name] = [*problems, wanted.remedy]
    return wrong


def _code_problems(root: Path) -> dict[str, list[str]]:
    """Files of code that are missing or empty, and links, by which anything could get in."""
    wrong = {}
    for name in required_code(root):
        path = root / name
        if not path.is_file():
            wrong[name] = ["the file is missing", PUT_BACK]
        elif not path.stat().st_size and path.name != "__init__.py":
            wrong[name] = ["the file is empty", PUT_BACK]
    for name, path in contents(root).items():
        if path == root / name and not is_inside(root, name):
            wrong[name] = [f"a link to {path.resolve()}, expected a file of the tree", NO_LINK]
    return wrong


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError("the file is missing") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"0x{content[error.start]:02x}"
        raise InputError(f"line {line}: found the byte {byte}, expected UTF-8") from error


def later_name(name: str) -> str | None:
    """The second name of a prediction file, for handouts of other years; None if it has one."""
    for earlier, later in LATER_NAMES.items():
        if name.startswith(f"predictions/{earlier}-"):
            return name.replace(earlier, later)
    return None


def contents(root: Path) -> dict[str, Path]:
    """Name in the zip -> file; the sentiment predictions are in it under both names."""
    files = {name: root / name for name in [*code_files(root), *required_predictions()]}
    seconds = {later_name(name): path for name, path in files.items() if later_name(name)}
    return files | seconds


def listing(root: Path, data_dir: Path, runs_dir: Path, files: dict[str, Path]) -> list[str]:
    """A line a file; below a prediction file, which run wrote it and what is doubtful about it."""
    wanted, lines = required_predictions(), []
    for name in sorted(files):
        path = files[name]
        same = path.relative_to(root).as_posix()
        lines.append(f"{path.stat().st_size:10,}  {name}" + f" = {same}" * (same != name))
        if name in wanted:
            lines.append(f"{'':12}{origin(path, runs_dir)}")
            doubts = wanted[name].doubts(path, data_dir)
            lines += [f"{'':12}warning: {doubt}" for doubt in doubts]
    if unknown := untracked(root, code_files(root)):
        lines.append(f"warning: not tracked by git, and yet in the zip: {', '.join(unknown)}")
    return [*lines, "a = b: sentiment predictions again, by the names of other years' handouts"]


def write_zip(path: Path, files: dict[str, Path]) -> None:
    """Zip the files so that equal files give equal bytes: sorted, undated, permissions 644."""
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3  # 3: Unix
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name].read_bytes(), compresslevel=9)


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree (default: %(default)s)")
    parser.add_argument("--data_dir", type=Path, help="default: data in the tree")
    parser.add_argument("--runs_dir", type=Path, help="default: runs in the tree")
    parser.add_argument("--out", type=Path, help=f"default: {ZIP_NAME} in the tree")
    args = parser.parse_args(argv)
    out = args.out or args.root / ZIP_NAME
    data_dir = args.data_dir or args.root / "data"
    runs_dir = args.runs_dir or args.root / "runs"
    wrong = check(args.root, data_dir)
    for name, (*problems, remedy) in wrong.items():
        for problem in problems:
            place = ", " if problem.startswith("line ") else ": "
            print(f"{excerpt(name)}{place}{excerpt(problem)}", file=sys.stderr)
        print(f"    -> {remedy}", file=sys.stderr)
    if wrong:
        raise InputError(f"{out}: not written; files to mend, as told above: {len(wrong)}")
    files = contents(args.root)
    lines = listing(args.root, data_dir, runs_dir, files)
    write_zip(out, files)
    print("\n".join(lines))
    print(f"{out}: {len(files)} files, {out.stat().st_size:,} bytes")
    print(f"next: upload {out} to Gradescope")


if __name__ == "__main__":
    main()
