"""What each prediction file of a submission should look like, and what is wrong with one."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engine.errors import quoted
from engine.prediction_files import header_column, read_gold, read_predictions, split_row
from engine.records import NUM_LABELS, SONNET_HEADER, Record, data_file, read_sonnets
from engine.tables import LINE_END, read_table

LATER_NAMES = {"finetune": "full-model", "pretrain": "last-linear-layer"}


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
            found.append(f"line 1: found {quoted(first.rstrip())}, expected {header!r}")
        for number, line in enumerate(lines, start=2):
            if not (row := split_row(line)):
                found.append(f"line {number}: found {quoted(line.rstrip())}, expected 'id, value'")
                continue
            sent_id, value = row
            if value not in self.values:
                expected = f"one of {', '.join(self.values)}"
                found.append(f"line {number}: found the value {quoted(value)}, expected {expected}")
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
            found.append(f"line 1: found {quoted(first.rstrip())}, expected {SONNET_HEADER!r}")
        for number, line in enumerate(lines, start=2):
            if re.fullmatch(r"\s*\d+\s*", line):
                sonnets.append({"line": number, "index": line.strip(), "text": ""})
            elif sonnets:
                sonnets[-1]["text"] += line.strip()
            elif line.strip():
                found.append(
                    f"line {number}: found {quoted(line.strip())}, expected a sonnet's index"
                )
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
