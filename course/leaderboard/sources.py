"""Where submissions come from: a folder of zips, or one that Gradescope exported.

Gradescope's export holds submission_metadata.yml and an unpacked folder for each entry of it:

    submission_12345:                      the folder's name
      :submitters:                         one, or the members of a group
      - :name: Ada Lovelace
        :sid: '111'
        :email: ada@example.org
      :created_at: 2026-03-01 14:05:09.123456000 Z

In a plain folder the zip's name tells the team, and the time where it ends with one, in UTC:
TEAM-2026-03-01T14-05-09.zip. Without one, the file's date of modification is the time.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

import yaml

from engine.errors import InputError, quoted

METADATA = "submission_metadata.yml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast
TIMED = re.compile(
    r"(?P<team>.+?)[-_ .@]+(?P<day>\d{4}-?\d\d-?\d\d)(?:[-_ .T](?P<clock>\d\d([-:.]?\d\d){1,2}))?Z?"
)


@dataclass(frozen=True)
class Submission:
    """team: a key that stays the same from one submission to the next; name: what people read."""

    team: str
    name: str
    time: datetime
    path: Path  # a zip or a folder

    def digest(self) -> str:
        """SHA-256 of the zip; of a folder, of its files' paths and contents."""
        if self.path.is_file():
            return _sha256(self.path)
        whole = hashlib.sha256()
        for path in sorted(p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()):
            whole.update(f"{path.relative_to(self.path).as_posix()}\n{_sha256(path)}\n".encode())
        return whole.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(folder: Path) -> tuple[list[Submission], dict[str, str]]:
    """The submissions of a folder, the earliest first, and file -> problem of those without one."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected submissions: give their folder")
    if (folder / METADATA).is_file():
        found, problems = _exported(folder)
    else:
        found, problems = [_zip(path) for path in folder.iterdir() if _is_zip(path)], {}
    if not found and not problems:
        raise InputError(
            f"{folder}: no submission, expected zips or Gradescope's export with {METADATA}: "
            f"give another folder"
        )
    return sorted(found, key=lambda s: (s.time, s.team, s.path.name)), problems


# -- a plain folder --------------------------------------------------------------------------------


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file() and not path.name.startswith(".")


def _zip(path: Path) -> Submission:
    team, when = team_and_time(path.stem)
    if when is None:
        when = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    return Submission(_key([team]), team, when, path)


def team_and_time(stem: str) -> tuple[str, datetime | None]:
    """("night-owls", its time) of "night-owls-2026-03-01T14-05-09"; None where there is no time."""
    found = TIMED.fullmatch(stem)
    if not found:
        return stem, None
    day, clock = (re.sub(r"\D", "", found[name] or "") for name in ("day", "clock"))
    try:
        return found["team"], datetime.combine(
            date.fromisoformat(day), time.fromisoformat(clock or "00"), UTC
        )
    except ValueError:  # digits that are no date belong to the name
        return stem, None


# -- Gradescope's export ---------------------------------------------------------------------------


def _exported(folder: Path) -> tuple[list[Submission], dict[str, str]]:
    entries, found, problems = _metadata(folder / METADATA), [], {}
    for name, entry in entries.items():
        path = folder / str(name)
        if path.parent != folder or not path.is_dir() or path.is_symlink():
            problems[str(name)] = "no such folder in the export: export it again"
            continue
        people = _submitters(entry)
        ids = [
            person.get(":email") or person.get(":sid") or person.get(":name") for person in people
        ]
        names = [str(person.get(":name") or "").strip() for person in people]
        shown = ", ".join(filter(None, names)) or path.name
        when = _when(entry.get(":created_at"), path)
        found.append(Submission(_key(map(str, filter(None, ids))) or path.name, shown, when, path))
    return found, problems


def _metadata(path: Path) -> dict[str, dict]:
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no YAML ({quoted(str(error))}): export it again") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise InputError(f"{path}: expected submission_N with :submitters: each: export it again")
    return entries


def _submitters(entry: dict) -> list[dict]:
    people = entry.get(":submitters")
    return [p for p in people if isinstance(p, dict)] if isinstance(people, list) else []


def _when(value, path: Path) -> datetime:
    """:created_at: as YAML reads it, a date, a time or text; else the folder's date."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip().replace(" Z", "Z"))
        except ValueError:
            value = None
    if not isinstance(value, datetime):
        value = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    value = value if value.tzinfo else value.replace(tzinfo=UTC)
    return value.astimezone(UTC).replace(microsecond=0)


def _key(members) -> str:
    """A team's key: its members in order, however they are spelt."""
    folded = {unicodedata.normalize("NFC", member).casefold().strip() for member in members}
    return " | ".join(sorted(folded))
