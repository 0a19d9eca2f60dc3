"""Score a submission's prediction files against the right answers, which staff keep.

A gold folder holds the course's files with labels, whichever of them there are:

    ids-sst-dev.csv  ids-cfimdb-dev.csv  quora-dev.csv  TRUE_sonnets_held_out_dev.txt
    ids-sst-test.csv ids-cfimdb-test.csv quora-test.csv TRUE_sonnets_held_out.txt
"""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import InputError, excerpt
from engine.predicting import Predictions, accuracy_and_f1
from engine.prediction_files import check_ids, read_gold, read_predictions
from engine.records import SONNET_FILES, Record, read_sonnets
from engine.sonnets import partners
from engine.submission_form import LATER_NAMES, Sonnets, Table, required_predictions
from evaluation import sonnet_report

SPLITS = ("dev", "test")
MAX_BYTES = {Table: 8_000_000, Sonnets: 500_000}  # of a prediction file; Quora's have 1.5 million
COLUMNS = {Table: ("acc", "f1"), Sonnets: ("chrf", "chrf_continuation")}


@dataclass(frozen=True)
class FileScore:
    """How good one prediction file is; of a refused one, why.

    figures: accuracy and macro-F1 from 0 to 1 ("acc", "f1"), or chrF from 0 to 100 of whole
    sonnets and of the continuations alone ("chrf", "chrf_continuation").
    """

    path: str  # in the submission
    figures: dict[str, float]
    problem: str | None = None


def gold_file(wanted: Table | Sonnets, split: str) -> str:
    """The name in the gold folder of the answers to a prediction file."""
    if isinstance(wanted, Sonnets):
        return SONNET_FILES["gold"].replace("_dev", "_dev" if split == "dev" else "")
    return wanted.data.replace("-student", "")


def score(folder: Path, gold: Path, split: str) -> dict[str, FileScore]:
    """Score the prediction files of an unpacked submission, each independently of the others.

    split: "dev" or "test". Returns name -> score for the names of `scored`. What is wrong with a
    prediction file is its `problem`; an InputError is about the gold folder.
    """
    return {
        name: score_file(folder, path, Answers.read(wanted, Path(gold), split))
        for name, (path, wanted) in scored(gold, split).items()
    }


def scored(gold: Path, split: str) -> dict[str, tuple[str, Table | Sonnets]]:
    """Name -> (path in the submission, form) of the files that the gold folder has answers to.

    Names: finetune-sst, finetune-cfimdb, pretrain-sst, pretrain-cfimdb, paraphrase, sonnet.
    """
    found = {}
    for path, wanted in required_predictions().items():
        is_dev = "-dev-" in path or path.endswith("_dev.txt")
        if is_dev == (split == "dev") and (Path(gold) / gold_file(wanted, split)).exists():
            found[_name(path)] = (path, wanted)
    if not found:
        names = [gold_file(form, split) for form in required_predictions().values()]
        raise InputError(
            f"{gold}: no answers to the {split} files, expected some of "
            f"{', '.join(sorted({n for n in names if ('dev' in n) == (split == 'dev')}))}"
        )
    return found


def _name(path: str) -> str:
    stem = Path(path).name
    if stem.startswith("para"):
        return "paraphrase"
    return "sonnet" if "sonnet" in stem else "-".join(stem.split("-")[:2])


@dataclass(frozen=True)
class Answers:
    """The right answers to one prediction file, and the form that this must have.

    ids: what `wanted.problems` compares with; labels: by id, or the true sonnets.
    """

    wanted: Table | Sonnets
    ids: dict[str, bool] | list[Record]
    labels: dict[str, int] | list[Record]

    @classmethod
    def read(cls, wanted: Table | Sonnets, gold: Path, split: str) -> "Answers":
        wanted = replace(wanted, data=gold_file(wanted, split))
        if isinstance(wanted, Sonnets):
            sonnets = read_sonnets(gold / wanted.data)
            return cls(wanted, sonnets, sonnets)
        if wanted.column == "Predicted_Is_Paraphrase":  # the course's test file has no labels
            wanted = replace(wanted, texts=("sentence1", "sentence2", "is_duplicate"))
        return cls(wanted, wanted.ids(gold), read_gold(gold / wanted.data, wanted.column))


def score_file(folder: Path, path: str, answers: Answers) -> FileScore:
    """The score of the file at `path` in a submission, or why it is refused."""
    try:
        path = existing(folder, path)
        return FileScore(path, figures_of(Path(folder) / path, answers))
    except InputError as error:
        return FileScore(path, {}, excerpt(str(error).replace(f"{folder}/", "")))


def existing(folder: Path, path: str) -> str:
    """The path by which a submission has a file: sentiment has two, of different years."""
    names = [path, *(path.replace(*names) for names in LATER_NAMES.items() if names[0] in path)]
    for name in names:
        if (Path(folder) / name).is_file():
            return name
    raise InputError(f"{' or '.join(names)}: the file is missing: predict, then zip again")


def figures_of(path: Path, answers: Answers) -> dict[str, float]:
    """The figures of one file; InputError if its form is not what the course asks for."""
    wanted, labels = answers.wanted, answers.labels
    size, most = path.stat().st_size, MAX_BYTES[type(wanted)]
    if size > most:
        raise InputError(f"{path}: {size:,} bytes, expected at most {most:,}: predict anew")
    _check_form(path, answers)
    if isinstance(wanted, Sonnets):
        generated = read_sonnets(path)
        report = sonnet_report(generated, partners(generated, labels, path, wanted.data))
        return {name: report[name] for name in COLUMNS[Sonnets]}
    classes = read_predictions(path, wanted.column).classes
    given = {i: classes[i] for i in classes if answers.ids.get(i, True)}  # complete rows alone
    check_ids(given, labels, path, wanted.data)
    return accuracy_and_f1(
        Predictions(list(labels), [given[i] for i in labels], [*labels.values()])
    )


def _check_form(path: Path, answers: Answers) -> None:
    """Raise the first problem, with the count of the others."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start:,} is not UTF-8: predict anew") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty: predict anew")
    problems = answers.wanted.problems(text, answers.ids)
    if problems:
        more = f" (and {len(problems) - 1:,} more problems)" if len(problems) > 1 else ""
        place = ", " if problems[0].startswith("line ") else ": "
        raise InputError(f"{path}{place}{excerpt(problems[0])}{more}: predict anew")
