"""Submissions made up from data/sample, zipped as students do: prediction files of any quality.

python tests/course/submissions.py FOLDER 500     FOLDER/gold and 500 zips in FOLDER/zips
"""

import random
import shutil
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.files import ROOT
from engine.prediction_files import ANSWER_TOKENS, read_gold
from engine.records import SONNET_HEADER, read_sonnets
from engine.sonnets import verses
from engine.submission_form import Sonnets, required_predictions

SAMPLE = ROOT / "data" / "sample"
SONNETS = SAMPLE / "TRUE_sonnets_held_out_dev.txt"
START = datetime(2026, 3, 2, 9, tzinfo=UTC)
WORDS = ["Möbius", "night owls", "attention", "ひかり", "gradient", "פרחים", "residual", "tiny"]


def write_answers(folder: Path, splits=("dev", "test")) -> Path:
    """A gold folder, in which the sample's dev files are the answers to test, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ids-sst-dev.csv", "ids-cfimdb-dev.csv", "quora-dev.csv"):
        for split in splits:
            shutil.copy(SAMPLE / name, folder / name.replace("dev", split))
    for split in splits:
        shutil.copy(
            SONNETS, folder / SONNETS.name.replace("_dev", "_dev" if split == "dev" else "")
        )
    return folder


@cache
def _labels(name: str, column: str) -> dict[str, int]:
    return read_gold(SAMPLE / name.replace("test-student", "dev"), column)


@cache
def _sonnets() -> list:
    return read_sonnets(SONNETS)


def prediction_files(skill: float, draw: random.Random) -> dict[str, str]:
    """Path -> text of all prediction files; each row and verse is right with probability skill."""
    files = {}
    for path, wanted in required_predictions().items():
        if isinstance(wanted, Sonnets):
            files[path] = _sonnet_text(skill, draw)
            continue
        lines, tokens = [f"id, {wanted.column} "], wanted.column == "Predicted_Is_Paraphrase"
        for sent_id, label in _labels(wanted.data, wanted.column).items():
            right = ANSWER_TOKENS[label] if tokens else label
            wrong = [int(value) for value in wanted.values if int(value) != right]
            value = right if draw.random() < skill else draw.choice(wrong)
            lines.append(f"{sent_id}, {value} ")
        files[path] = "\n".join(lines) + "\n"
    return files


def _sonnet_text(skill: float, draw: random.Random) -> str:
    pool = [line for sonnet in _sonnets() for line in verses(sonnet.text)]
    parts = [SONNET_HEADER, ""]
    for sonnet in _sonnets():
        lines = verses(sonnet.text)
        for i in range(3, len(lines)):
            if draw.random() > skill / 2:
                lines[i] = draw.choice(pool)
        parts += ["", sonnet.sent_id, *lines, ""]
    return "\n".join(parts) + "\n"


def write_zip(path: Path, files: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def write_submissions(folder: Path, count: int, *, per_team: int = 1, seed: int = 0) -> list[Path]:
    """Zips TEAM-TIME.zip of teams that get better with every submission; the same from a seed."""
    draw, paths = random.Random(seed), []
    for i in range(count):
        team, turn = divmod(i, per_team)
        name = f"{WORDS[team % len(WORDS)]} {team + 1}"
        skill = min(0.3 + 0.6 * draw.betavariate(3, 2) + 0.03 * turn, 0.98)
        time = START + timedelta(minutes=team * 37 + turn * 1500)
        path = folder / f"{name}-{time:%Y-%m-%dT%H-%M-%S}.zip"
        paths.append(write_zip(path, prediction_files(skill, draw)))
    return paths


if __name__ == "__main__":
    target, amount = Path(sys.argv[1]), int(sys.argv[2])
    write_answers(target / "gold")
    write_submissions(target / "zips", amount)
