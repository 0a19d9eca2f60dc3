"""Check the submission, name all that is wrong with it at once, and only then zip it.

python prepare_submit.py    writes cs224n_default_final_project_submission.zip

Equal files give a zip of equal bytes. The sentiment predictions are in it under two names, as the
handouts of different years ask for them: finetune = full-model, pretrain = last-linear-layer.
"""

import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from utils import ROOT, InputError, Parser, atomic_write, command

# isort: split

from dataset import (
    LINE_END,
    NUM_LABELS,
    SONNET_HEADER,
    Record,
    data_file,
    read_sonnets,
    read_table,
)

ZIP_NAME = "cs224n_default_final_project_submission.zip"
REQUIRED_CODE = (
    *("README.md", "requirements.txt", "setup.sh", "optimizer_test.npy"),
    *("config.py", "utils.py", "optimizer.py", "optimizer_test.py", "sanity_check.py"),
    *("kernels/adamw.py", "kernels/adamw_rows.py", "kernels/adamw.c"),
    *("kernels/adamw_cpu.py", "kernels/adamw_triton.py"),
    *("modules/attention.py", "modules/gpt2_layer.py"),
    *("models/base_gpt.py", "models/gpt2.py", "models/generation.py"),
    *("dataset.py", "evaluation.py", "training.py", "prepare_submit.py"),
    *("classifier.py", "paraphrase_detection.py", "sonnet_generation.py"),
)
FURTHER_CODE = (
    *("*.py", "kernels/*.py", "kernels/*.c", "modules/*.py", "models/*.py"),
    *("extensions/*.py", "extensions/README.md"),
)
LATER_NAMES = {"finetune": "full-model", "pretrain": "last-linear-layer"}
SHOWN = 10  # lines told of one file: a thousand alike say no more
GET_DATA = "python data/download.py"


@dataclass(frozen=True)
class Table:
    """What a file of predicted classes should look like. `texts`: columns that a model needs."""

    data: str
    texts: tuple[str, ...]
    column: str
    values: tuple[str, ...]
    remedy: str

    def ids(self, folder: Path) -> dict[str, bool]:
        """The ids of the data file: True where a prediction must be there, False where it may."""
        rows = read_table(folder / self.data, ["id", *self.texts], may_be_short=True)
        complete = [(row, all((row[name] or "").strip() for name in self.texts)) for _, row in rows]
        return {(row["id"] or "").lower().strip(): needed for row, needed in complete}

    def problems(self, text: str, ids: dict[str, bool] | None) -> list[str]:
        """All that is wrong with a prediction file's text; ids None: the data cannot be read."""
        first, *lines = text.rstrip().split("\n")
        header, found, seen = f"id, {self.column}", [], {}
        if first.rstrip() != header:
            found.append(f"line 1: found {first.rstrip()!r}, expected {header!r}")
        for number, line in enumerate(lines, start=2):
            sent_id, comma, value = (part.strip() for part in line.partition(","))
            sent_id = sent_id.lower()
            if not comma or not sent_id:
                found.append(f"line {number}: found {line.rstrip()!r}, expected 'id, value'")
                continue
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


@dataclass(frozen=True)
class Sonnets:
    """What a file of generated sonnets should look like."""

    data: str
    remedy: str = "python sonnet_generation.py --use_gpu"

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
                )
        wanted[f"predictions/para-{split}-output.csv"] = Table(
            data=data_file("paraphrase", split),
            texts=("sentence1", "sentence2", *(["is_duplicate"] if split == "dev" else [])),
            column="Predicted_Is_Paraphrase",
            values=("8505", "3919"),
            remedy="python paraphrase_detection.py --use_gpu",
        )
    return wanted


def code_files(root: Path) -> list[str]:
    """The code that is there: what is required, and what it may import."""
    paths = [root / name for name in REQUIRED_CODE]
    for pattern in FURTHER_CODE:
        paths += root.glob(pattern)
    names = {path.relative_to(root).as_posix() for path in paths if path.is_file()}
    return sorted(name for name in names if not Path(name).name.startswith("."))


def check(root: Path, data_dir: Path) -> dict[str, list[str]]:
    """Everything that is wrong: file -> its problems, the last one being what to do."""
    wrong = {}
    for name in REQUIRED_CODE:
        if not (root / name).is_file() or not (root / name).stat().st_size:
            state = "empty" if (root / name).is_file() else "missing"
            wrong[name] = [f"the file is {state}", "put it back: the submission needs it"]
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


def contents(root: Path) -> dict[str, Path]:
    """Name in the zip -> file; the sentiment predictions are in it under both names."""
    files = {name: root / name for name in [*code_files(root), *required_predictions()]}
    for name in required_predictions():
        for earlier, later in LATER_NAMES.items():
            if name.startswith(f"predictions/{earlier}-"):
                files[name.replace(earlier, later)] = root / name
    return files


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
    parser.add_argument("--out", type=Path, help=f"default: {ZIP_NAME} in the tree")
    args = parser.parse_args(argv)
    out = args.out or args.root / ZIP_NAME
    wrong = check(args.root, args.data_dir or args.root / "data")
    for name, (*problems, remedy) in wrong.items():
        for problem in problems:
            place = ", " if problem.startswith("line ") else ": "
            print(f"{name}{place}{problem}", file=sys.stderr)
        print(f"    -> {remedy}", file=sys.stderr)
    if wrong:
        raise InputError(f"{out}: not written; files to mend, as told above: {len(wrong)}")
    files = contents(args.root)
    write_zip(out, files)
    for name in sorted(files):
        print(f"{files[name].stat().st_size:10,}  {name}")
    print(f"{out}: {len(files)} files, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
