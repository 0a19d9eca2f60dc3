"""More training data: EDA, symmetric pairs, hard negatives, rows from elsewhere, without leaks.

    deletion, swap, insertion, replacement   of a few words of each row    Wei & Zou 2019, section 2
    symmetric                                paraphrase: the two questions in the other order
    hard_negatives                           paraphrase: non-paraphrases that share the most words

Every new text is compared with dev and test by n-grams of words (leak_check.py): a made row that
says what they say is left out; a file from elsewhere, --extra, that does so is refused with its
lines, and so is a plain text given by --check. The result is a folder for --data_dir: train with
the new rows at its end, dev and test copied; the folder of the data itself is never written to.

Wei & Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
Classification Tasks"; hard negatives as in Zhang et al. 2019, "PAWS", whose pairs with many common
words models fail on. Differs from the papers: neighbors in the training corpus take the place of
WordNet (augment_text.py); hard pairs are not made, but picked from the training data to come again.

    python -m programs.augment --task sst --methods deletion swap --out_dir data/sst-eda
    python -m programs.augment --task paraphrase --methods symmetric --out_dir data/symmetric
    python -m programs.augment --task sonnet --check more-sonnets.txt
"""

import csv
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from engine.errors import InputError, Parser, command
from engine.files import atomic_path, atomic_write, check_writable

# isort: split

from tqdm import tqdm

from engine.classification import ClassificationTask
from engine.flags import check_range
from engine.records import (
    data_file,
)
from engine.tables import read_table, read_text
from engine.task import Task
from programs.augment.leak_check import HeldOut, texts_of
from programs.augment.text import (
    BY_NEIGHBORS,
    EDA,
    Neighbors,
    changed_pair,
    changed_sentiment,
    hard_negatives,
    symmetric,
)
from programs.tasks import TASKS

SHOWN = 20  # lines told of one file


PAIR_METHODS = ("deletion", "swap", "symmetric", "hard_negatives")
HELD_OUT = {"sonnet": ("gold", "dev", "test")}  # splits; of other tasks dev and test


def methods_of(task: Task) -> tuple[str, ...]:
    """The ways to make new rows of this task's training file."""
    if not isinstance(task, ClassificationTask):
        return ()
    return PAIR_METHODS if task.name == "paraphrase" else tuple(EDA)


def held_out_files(name: str) -> list[str]:
    return [data_file(name, split) for split in HELD_OUT.get(name, ("dev", "test"))]


def read(args, path, *, labelled: bool = True) -> list:
    """The records of a file of this task."""
    return TASKS[args.task].read(path, labelled=labelled, say=lambda message: None)


def held_out(args, training: list) -> HeldOut:
    """What must not be said: dev and test, less what training says anyway."""
    found = HeldOut(args.ngram)
    for name in held_out_files(args.task):
        path = Path(args.data_dir) / name
        if name.startswith("TRUE_") and not path.exists():
            continue  # the dev sonnets' full text, which the tasks do without, too
        found.add(read(args, path, labelled="test" not in name), str(path))
    found.forget(training)
    return found


def refuse(path, leaks: dict[int, str], held: HeldOut) -> None:
    """One line for all that leaks in a file, if anything does."""
    if leaks:
        lines = ", ".join(map(str, list(leaks)[:SHOWN]))
        more = f" and {len(leaks) - SHOWN} more" if len(leaks) > SHOWN else ""
        raise InputError(
            f"{path}, line {lines}{more}: {held.n} words running, or a whole text, of dev or test, "
            f"the first is {next(iter(leaks.values()))}: take these lines out"
        )


def read_extra(args, held: HeldOut) -> list:
    """The rows of --extra, with ids of their own; refused if any of them leaks."""
    if not args.extra:
        return []
    records = read(args, args.extra)
    rows = read_table(args.extra, ["id"], may_be_short=True)
    lines = {row["id"].lower().strip(): line for line, row in rows}
    leaks = {lines[r.sent_id]: leak for r in records if (leak := held.leak(r))}
    refuse(args.extra, leaks, held)
    return [replace(record, sent_id=f"extra-{record.sent_id}") for record in records]


def made(args, training: list) -> Iterator:
    """New rows of all methods; each has the id of its origin, the method and its number."""
    draw = random.Random(args.seed)
    training = [record for record in training if all(text.split() for text in texts_of(record))]
    by_neighbors = set(args.methods) & set(BY_NEIGHBORS)
    neighbors = Neighbors(training) if by_neighbors else None
    change_row = changed_pair if args.task == "paraphrase" else changed_sentiment
    change_all = {
        "symmetric": symmetric,
        "hard_negatives": partial(hard_negatives, share=args.share),
    }
    for method in args.methods:
        for copy in range(1, 2 if method == "symmetric" else args.copies + 1):
            if method in change_all:
                rows = change_all[method](training)
            else:
                how = (EDA[method], args.alpha, draw, neighbors)
                bar = tqdm(training, desc=method, leave=False, disable=None)
                rows = (change_row(record, *how) for record in bar)
            for record in rows:
                yield method, replace(record, sent_id=f"{record.sent_id}-{method}{copy}")


def new_rows(args, training: list, held: HeldOut) -> tuple[list, list[str]]:
    """Rows worth having, and what to say about those and the others."""
    seen = {tuple(texts_of(record)) for record in training}
    rows, counts = [], {name: [0, 0, 0] for name in args.methods}
    for method, record in made(args, training):
        texts = tuple(texts_of(record))
        if method != "hard_negatives" and texts in seen:
            counts[method][1] += 1
        elif held.leak(record):
            counts[method][2] += 1
        else:
            counts[method][0] += 1
            rows.append(record)
            seen.add(texts)
    said = [
        f"{name}: {new:,} rows; left out: {known:,} that are there already, {leaking:,} that stand "
        f"in dev or test"
        for name, (new, known, leaking) in counts.items()
    ]
    return rows, said


def write_rows(path, columns: tuple[str, ...], records: list) -> None:
    """A training file in the course's format."""
    with atomic_write(path) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["", "id", *columns])
        for i, record in enumerate(records):
            writer.writerow([i, record.sent_id, *texts_of(record), record.label])


def augment(args) -> list[str]:
    """Write the folder; what to say about it."""
    task, out = TASKS[args.task], Path(args.out_dir)
    name = data_file(args.task, "train")
    if out.resolve() == Path(args.data_dir).resolve():
        raise InputError(f"--out_dir {out}: the data's own folder, expected another one")
    check_writable(out / name)
    training = read(args, Path(args.data_dir) / name)
    held = held_out(args, training)
    extra = read_extra(args, held)
    rows, said = new_rows(args, training, held)
    if args.extra:
        said.append(f"{args.extra}: {len(extra):,} rows, none of which stands in dev or test")
    everything = [*training, *rows, *extra]
    for other in held_out_files(args.task):  # before train: it is there only when all is
        with atomic_path(out / other) as path:
            shutil.copyfile(Path(args.data_dir) / other, path)
    write_rows(out / name, task.columns, everything)
    said.append(f"{out / name}: {len(everything):,} rows, {len(training):,} of them as before")
    return [*said, f"next: python {' '.join(task.command)} --data_dir {out} --use_gpu"]


def check(args) -> list[str]:
    """Compare plain texts with dev and test."""
    held = held_out(args, read(args, Path(args.data_dir) / data_file(args.task, "train")))
    for path in args.check:
        refuse(path, held.leaks_of_text(read_text(path)), held)
    where = ", ".join(held_out_files(args.task))
    return [f"{', '.join(args.check)}: no {held.n} words running that stand in {where}"]


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--task", choices=TASKS, required=True)
    methods = list(dict.fromkeys(name for task in TASKS.values() for name in methods_of(task)))
    parser.add_argument("--methods", nargs="+", choices=methods, default=[])
    parser.add_argument("--extra", metavar="FILE", help="more rows, in the training file's format")
    parser.add_argument("--check", nargs="+", metavar="FILE", help="texts to compare, no more")
    parser.add_argument("--out_dir", metavar="DIR", help="a new folder for --data_dir")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--alpha", type=float, default=0.1, help="share of words that change")
    parser.add_argument("--copies", type=int, default=1, help="new rows from each row, a method")
    parser.add_argument("--share", type=float, default=0.2, help="of hard among all negatives")
    parser.add_argument("--ngram", type=int, default=8, help="words running that make a leak")
    parser.add_argument("--seed", type=int, default=11711)
    args = parser.parse_args(argv)
    for name, low, high in (("alpha", 0, 1), ("share", 0, 1)):
        check_range(args, name, low, high)
    for name in ("copies", "ngram"):
        check_range(args, name, 1)
    unfit = [name for name in args.methods if name not in methods_of(TASKS[args.task])]
    if unfit:
        raise InputError(
            f"--methods {', '.join(unfit)}: not for {args.task}, which has: "
            f"{', '.join(methods_of(TASKS[args.task])) or 'none, only --check'}"
        )
    if args.task == "sonnet" and args.extra:
        raise InputError("--extra: not for sonnets: --check the file, then append it by hand")
    if bool(args.check) == bool(args.methods or args.extra) or bool(args.check) == bool(
        args.out_dir
    ):
        raise InputError("expected --check FILE, or --methods or --extra with --out_dir DIR")
    return args


@command
def main():
    args = get_args()
    for line in check(args) if args.check else augment(args):
        print(line)
