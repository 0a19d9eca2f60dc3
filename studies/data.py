"""The rows that studies train on: training files or samples of them, dev files, no test rows.

A sample is drawn from all of a file, whose first rows are not like the rest, and is the same for
all contestants and seeds. Where a task wants a test file, it finds an invented row, or the one
sonnet prompt by which it knows that a dev sonnet is held out as well.
"""

import csv
import io
import random
from pathlib import Path

from engine.files import atomic_write
from engine.prediction_files import write_sonnets
from engine.records import NUM_LABELS, data_file, read_sonnets
from engine.sonnets import opening, openings
from engine.tables import read_text

FULL, WHOLE, SMALL, QUARTER = "full", "whole", "small", "quarter"
GOLD, PROMPTS, SONNETS = (data_file("sonnet", split) for split in ("gold", "test", "train"))
FILES = (
    *(data_file(task, split) for task in (*NUM_LABELS, "paraphrase") for split in ("train", "dev")),
    *(SONNETS, data_file("sonnet", "dev"), GOLD),
)
PAIRS = {data_file("paraphrase", "train"): 4000, data_file("paraphrase", "dev"): 1000}
ROWS = {  # of those files that are sampled
    FULL: {},
    WHOLE: PAIRS,
    SMALL: {**PAIRS, data_file("sst", "train"): 1000, SONNETS: 48},
    QUARTER: {data_file("sst", "train"): 2136},
}
INVENTED = {
    **{data_file(task, "test"): "\tid\tsentence\n0\tx\tnothing\n" for task in NUM_LABELS},
    data_file("paraphrase", "test"): "\tid\tsentence1\tsentence2\n0\tx\twhat ?\twhy ?\n",
}
SEED = 11711


def prepare(source, root, limit: int | None = None) -> None:
    """Write a folder for each of ROWS below root; limit: rows of each file at most."""
    source = Path(source)
    for name, rows in ROWS.items():
        folder = Path(root) / name
        for file in FILES:
            bounds = [most for most in (rows.get(file), limit) if most]
            write_sample(source / file, folder / file, min(bounds, default=None))
        for file, text in INVENTED.items():
            with atomic_write(folder / file) as out:
                out.write(text)
        prompts = read_sonnets(source / PROMPTS)
        dev = set().union(*(openings(sonnet) for sonnet in read_sonnets(source / GOLD)))
        kept = [prompt for prompt in prompts if opening(prompt) in dev]
        write_sonnets(folder / PROMPTS, kept or prompts[:1])


def write_sample(source: Path, path: Path, most: int | None) -> None:
    """At most so many rows, or sonnets, in the file's order; None: all."""
    if source.suffix == ".txt":
        write_sonnets(path, sample(read_sonnets(source), most))
        return
    text = io.StringIO(read_text(source), newline="")
    header, *rows = filter(None, csv.reader(text, delimiter="\t"))
    with atomic_write(path) as out:
        writer = csv.writer(out, delimiter="\t", lineterminator="\n")
        writer.writerows([header, *sample(rows, most)])


def sample(rows: list, most: int | None) -> list:
    """Of files of the same length the same rows: a prompt stays with its sonnet."""
    count = len(rows) if most is None else min(most, len(rows))
    return [rows[i] for i in sorted(random.Random(SEED).sample(range(len(rows)), count))]
