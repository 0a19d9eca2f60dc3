"""Score one submission on the splits asked for, with bootstrap intervals; a worker's whole job.

accuracy   p of n rows: rows drawn anew with replacement, the 2.5th and 97.5th percentile
chrF       sonnets drawn anew, half the width of the same percentiles (sacrebleu's bootstrap)
overall    the mean of the k tasks, a missing one counting 0. Tasks are independent, so that half
           the interval's width is √(Σ half widths²) / k

All figures are from 0 to 100. Seeds are fixed: the same submission gets the same interval.
"""

import functools
import hashlib
import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from course.archive import submission_root, unpack
from course.gold import COLUMNS, SPLITS, Answers, FileScore, existing, score_file, scored
from engine.errors import InputError, excerpt
from engine.records import Record, read_sonnets
from engine.sonnets import partners
from engine.submission_code import is_inside
from engine.submission_form import Sonnets
from programs.significance.significance import resampled_accuracies

SAMPLES, SEED = 1000, 11711
OVERALL = "overall"


@dataclass(frozen=True)
class Figure:
    """value: accuracy in percent, or chrF; second: macro-F1 in percent, or the continuation's chrF.

    problem: why there is no value.
    """

    value: float | None = None
    second: float | None = None
    low: float | None = None
    high: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Result:
    """splits: split -> task -> figure; sonnets: number in the gold file -> the dev text.

    problem: with the submission as a whole; again: it may be no fault of the submission, so that
    the next run tries once more.
    """

    splits: dict[str, dict[str, Figure]] = field(default_factory=dict)
    sonnets: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    again: bool = False


@functools.cache
def read_answers(gold: Path) -> dict[str, dict[str, tuple[str, Answers]]]:
    """Split -> task -> (path in a submission, answers), for the splits that the folder answers."""
    found, missing = {}, []
    for split in SPLITS:
        try:
            files = scored(gold, split)
        except InputError as error:
            missing.append(error)
            continue
        found[split] = {
            task: (path, Answers.read(wanted, gold, split))
            for task, (path, wanted) in files.items()
        }
    if not found:
        raise missing[0]
    return found


def fingerprints(gold: Path) -> dict[str, str]:
    """Split -> SHA-256 of its answers: figures by other answers cannot be compared."""
    found = {}
    for split, tasks in read_answers(gold).items():
        whole = hashlib.sha256()
        for task, (_, answers) in sorted(tasks.items()):
            content = (gold / answers.wanted.data).read_bytes()
            whole.update(f"{task} {hashlib.sha256(content).hexdigest()}\n".encode())
        found[split] = whole.hexdigest()
    return found


def score_submission(gold: Path, path: Path, splits: tuple[str, ...]) -> Result:
    """Unpack a zip, or look into a folder, and score its prediction files.

    Whatever goes wrong becomes a `problem`; nothing that a student sends raises an error.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="submission-") as scratch:
            if path.is_file():
                unpack(path, Path(scratch) / "files")
                path = Path(scratch) / "files"
            return _score_folder(submission_root(path), read_answers(gold), splits)
    except InputError as error:
        return Result(problem=str(error))
    except Exception as error:
        kind = type(error).__name__
        return Result(problem=f"scoring failed, {kind}: {excerpt(error)}", again=True)


def _score_folder(root: Path, answers: dict, splits: tuple[str, ...]) -> Result:
    figures, sonnets = {}, {}
    for split in splits:
        figures[split] = {}
        for task, (path, wanted) in answers[split].items():
            figures[split][task] = figure = _figure(root, path, wanted)
            if task == "sonnet" and split == "dev" and figure.problem is None:
                pairs = _sonnet_pairs(root / existing(root, path), wanted)
                sonnets = {gold.sent_id: generated.text for generated, gold in pairs}
    return Result(figures, sonnets)


def _figure(root: Path, path: str, answers: Answers) -> Figure:
    found = score_file(root, path, answers)
    if found.problem is None and not is_inside(root, found.path):
        found = FileScore(found.path, {}, f"{found.path}: a link, expected a file")
    if found.problem:
        return Figure(problem=found.problem)
    first, second = (found.figures[name] for name in COLUMNS[type(answers.wanted)])
    if isinstance(answers.wanted, Sonnets):
        half = chrf_half_width(_sonnet_pairs(root / found.path, answers))
        return Figure(first, second, max(first - half, 0.0), min(first + half, 100.0))
    low, high = accuracy_interval(first, len(answers.labels))
    return Figure(100 * first, 100 * second, 100 * low, 100 * high)


def _sonnet_pairs(path: Path, answers: Answers) -> list[tuple[Record, Record]]:
    generated = read_sonnets(path)
    gold = partners(generated, answers.labels, path, answers.wanted.data)
    return list(zip(generated, gold, strict=True))


# -- intervals -------------------------------------------------------------------------------------


def accuracy_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 %, of an accuracy on n rows: which rows are the right ones makes no difference."""
    right = np.arange(n) < round(accuracy * n)
    drawn = resampled_accuracies(right[None], SAMPLES, np.random.default_rng(SEED))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def chrf_half_width(pairs: list[tuple[Record, Record]]) -> float:
    """Half of the 95 % interval of the corpus chrF of (generated, gold) texts."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    generated, gold = ([record.text for record in side] for side in zip(*pairs, strict=True))
    score = metric.corpus_score(generated, [gold], n_bootstrap=SAMPLES)
    told = score.format(width=6, signature=str(metric.get_signature()), is_json=True)
    return json.loads(told).get("confidence_var", 0.0)  # not told where the chrF is 0


def overall(figures: dict[str, Figure]) -> Figure:
    """The mean of a submission's tasks on one split; a missing one counts 0."""
    k, told = len(figures), [f for f in figures.values() if f.value is not None]
    if not told:
        return Figure(problem="no file could be scored")
    value = sum(f.value for f in told) / k
    half = math.hypot(*((f.high - f.low) / 2 for f in told)) / k
    return Figure(value, None, max(value - half, 0.0), min(value + half, 100.0))
