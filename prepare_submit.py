"""Check the submission, name all that is wrong with it at once, and only then zip it.

python prepare_submit.py    writes cs224n_default_final_project_submission.zip

Equal files give a zip of equal bytes. The sentiment predictions are in it under two names, as the
handouts of different years ask for them: finetune = full-model, pretrain = last-linear-layer.
"""

import ast
import importlib.util
import re
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError, Parser, command
from engine.files import ROOT, atomic_write

# isort: split

from engine.prediction_files import header_column, origin, read_gold, read_predictions, split_row
from engine.records import (
    NUM_LABELS,
    SONNET_HEADER,
    Record,
    data_file,
    read_sonnets,
)
from engine.tables import LINE_END, read_table

ZIP_NAME = "cs224n_default_final_project_submission.zip"
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
LATER_NAMES = {"finetune": "full-model", "pretrain": "last-linear-layer"}
SHOWN = 10  # lines told of one file: a thousand alike say no more
PUT_BACK = "put it back: the submission needs it"
GET_DATA = "python data/download.py"


@dataclass(frozen=True)
class Table:
    """What a file of predicted classes should look like. `texts`: columns that a model needs."""

    data: str
    texts: tuple[str, ...]
    column: str
    values: tuple[str, ...]
    remedy: str
    labelled: bool  # the data file has the right answers

    def ids(self, folder: Path) -> dict[str, bool]:
        """The ids of the data file: True where a prediction must be there, False where it may."""
        rows = read_table(folder / self.data, ["id", *self.texts], may_be_short=True)
        complete = [(row, all((row[name] or "").strip() for name in self.texts)) for _, row in rows]
        return {(row["id"] or "").lower().strip(): needed for row, needed in complete}

    def problems(self, text: str, ids: dict[str, bool] | None) -> list[str]:
        """All that is wrong with a prediction file's text; ids None: the data cannot be read."""
        first, *lines = text.rstrip().split("\n")
        header, found, seen = f"id, {self.column}", [], {}
        if header_column(first) != self.column:
            found.append(f"line 1: found {first.rstrip()!r}, expected {header!r}")
        for number, line in enumerate(lines, start=2):
            if not (row := split_row(line)):
                found.append(f"line {number}: found {line.rstrip()!r}, expected 'id, value'")
                continue
            sent_id, value = row
            if value not in self.values:
                expected = f"one of {', '.join(self.values)}"
                found.append(f"line {number}: found the value {value!r}, expected {expected}")
            if sent_id in seen:
                place = f"line {number}: found id {sent_id} again"
                found.append(f"{place}, expected it once: it stands in line {seen[sent_id]}")
            elif ids is not None and sent_id not in ids:
                found.append(f"line {number}: found id {sent_id}, expected an id of {self.data}")
            seen.setdefault(sent_id, number)
        missing = [i for i, needed in (ids or {}).items() if needed and i not in seen]
        if missing:
            place = f"line {len(lines) + 1}: the file ends, and {len(missing)} of the {len(ids)}"
            found.append(f"{place} ids of {self.data} are missing, the first is {missing[0]}")
        return found

    def doubts(self, path: Path, data_dir: Path) -> list[str]:
        """What is no mistake of form, and yet may be one: little that a model has learnt."""
        classes = read_predictions(path, self.column).classes
        found = []
        if len(classes) > 1 and len(set(classes.values())) == 1:
            found.append(f"all {len(classes):,} rows have one and the same class")
        if self.labelled:
            gold = read_gold(data_dir / self.data, self.column)
            right = sum(classes.get(sent_id) == label for sent_id, label in gold.items())
            most = max(Counter(gold.values()).values())
            if right < most:
                found.append(
                    f"dev acc {right / len(gold):.3f}, below {most / len(gold):.3f}, which the "
                    f"most frequent class alone would have"
                )
        return found


@dataclass(frozen=True)
class Sonnets:
    """What a file of generated sonnets should look like."""

    data: str
    remedy: str = "python sonnet_generation.py --use_gpu"

    def doubts(self, path: Path, data_dir: Path) -> list[str]:
        return []

    def ids(self, folder: Path) -> list[Record]:
        return read_sonnets(folder / self.data)

    def problems(self, text: str, ids: list[Record] | None) -> list[str]:
        """All that is wrong with the file's text; ids None: the prompts cannot be read.

        A line that holds only a number is a sonnet's index, and no other line, as for the course.
        """
        first, *lines = LINE_END.split(text)
        found, sonnets = [], []
        if first.rstrip() != SONNET_HEADER:
            found.append(f"line 1: found {first.rstrip()!r}, expected {SONNET_HEADER!r}")
        for number, line in enumerate(lines, start=2):
            if re.fullmatch(r"\s*\d+\s*", line):
                sonnets.append({"line": number, "index": line.strip(), "text": ""})
            elif sonnets:
                sonnets[-1]["text"] += line.strip()
            elif line.strip():
                found.append(f"line {number}: found {line.strip()!r}, expected a sonnet's index")
        seen = set()
        for sonnet in sonnets:
            if not sonnet["text"]:
                place = f"line {sonnet['line']}: found sonnet {sonnet['index']} without text"
                found.append(f"{place}, expected its lines")
            if sonnet["index"] in seen:
                place = f"line {sonnet['line']}: found index {sonnet['index']} again"
                found.append(f"{place}, expected each once")
            seen.add(sonnet["index"])
        if ids is not None and len(sonnets) != len(ids):
            place = f"line {len(lines) + 1}: the file ends after {len(sonnets)} sonnets"
            found.append(f"{place}, expected {len(ids)} as in {self.data}")
        return found


def required_predictions() -> dict[str, Table | Sonnets]:
    """Path in the tree -> what should be there."""
    wanted = {
        "predictions/generated_sonnets.txt": Sonnets(data_file("sonnet", "test")),
        "predictions/generated_sonnets_dev.txt": Sonnets(data_file("sonnet", "dev")),
    }
    for split in ("dev", "test"):
        for prefix, mode in LATER_NAMES.items():
            for name, count in NUM_LABELS.items():
                wanted[f"predictions/{prefix}-{name}-{split}-out.csv"] = Table(
                    data=data_file(name, split),
                    texts=(),
                    column="Predicted_Sentiment",
                    values=tuple(map(str, range(count))),
                    remedy=f"python classifier.py --fine-tune-mode {mode} --use_gpu",
                    labelled=split == "dev",
                )
        wanted[f"predictions/para-{split}-output.csv"] = Table(
            data=data_file("paraphrase", split),
            texts=("sentence1", "sentence2", *(["is_duplicate"] if split == "dev" else [])),
            column="Predicted_Is_Paraphrase",
            values=("8505", "3919"),
            remedy="python paraphrase_detection.py --use_gpu",
            labelled=split == "dev",
        )
    return wanted


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
        tree = ast.parse((root / name).read_bytes())
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


def check(root: Path, data_dir: Path) -> dict[str, list[str]]:
    """Everything that is wrong: file -> its problems, the last one being what to do."""
    wrong = {}
    for name in required_code(root):
        path = root / name
        if not path.is_file():
            wrong[name] = ["the file is missing", PUT_BACK]
        elif not path.stat().st_size and path.name != "__init__.py":
            wrong[name] = ["the file is empty", PUT_BACK]
    references = {}
    for name, wanted in required_predictions().items():
        if wanted.data not in references:
            try:
                references[wanted.data] = wanted.ids(data_dir)
            except InputError as error:
                references[wanted.data] = None
                problem = str(error).removeprefix(f"{data_dir / wanted.data}").lstrip(":, ")
                wrong[str(data_dir / wanted.data)] = [problem, GET_DATA]
        try:
            problems = wanted.problems(_text(root / name), references[wanted.data])
        except InputError as error:
            problems = [str(error)]
        if len(problems) > SHOWN:
            problems[SHOWN:] = [f"and {len(problems) - SHOWN} more problems"]
        if problems:
            wrong[name] = [*problems, wanted.remedy]
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
    parser = Parser(description=__doc__.splitlines()[0])
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
            print(f"{name}{place}{problem}", file=sys.stderr)
        print(f"    -> {remedy}", file=sys.stderr)
    if wrong:
        raise InputError(f"{out}: not written; files to mend, as told above: {len(wrong)}")
    files = contents(args.root)
    write_zip(out, files)
    print("\n".join(listing(args.root, data_dir, runs_dir, files)))
    print(f"{out}: {len(files)} files, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
