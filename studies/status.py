"""What is done of each study, and how long the rest may take by what was recorded."""

from statistics import mean

from studies.entries import Study
from studies.estimates import forecast
from studies.plan import plan
from studies.records import Records


def counts(study: Study, records: list[dict], limit: int | None = None):
    """(runs done, runs missing, seconds that these may take or None)."""
    done, due, waiting = plan(study, records, limit)
    missing = [run.contestant.name for run in due] + [None] * waiting
    taken: dict[str, list[float]] = {}
    for run, record in done:
        if record.get("seconds"):
            taken.setdefault(run.contestant.name, []).append(record["seconds"])
    every = [seconds for each in taken.values() for seconds in each]
    if missing and not every:
        return len(done), len(missing), None
    left = sum(mean(taken.get(name) or every) for name in missing) if missing else 0.0
    return len(done), len(missing), left


def status(studies: list[Study], records: Records, limit: int | None = None) -> str:
    """A line for each study: name, done, missing, time that is left."""
    lines = [f"{'study':24} {'done':>5} {'missing':>8}   left, one run at a time"]
    for study in studies:
        done, missing, left = counts(study, records.read(study.suite), limit)
        lines.append(f"{study.name:24} {done:5} {missing:8}   {duration(left)}")
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown: nothing like it was timed"
    if seconds == 0:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def budget(studies: list[Study], records: Records, args) -> str:
    """What a command is about to do, before it does it."""
    found = {study.name: counts(study, records.read(study.suite), args.limit) for study in studies}
    missing = sum(count for _, count, _ in found.values())
    known = sum(left or 0 for *_, left in found.values())
    unknown = sum(count for _, count, left in found.values() if left is None)
    rest = f", and {unknown} runs of unknown length" if unknown else ""
    lines = [f"{missing} runs are missing: about {duration(known / args.jobs)}{rest}"]
    for study in studies:
        if study.hub and found[study.name][2] is None:
            _, due, _ = plan(study, records.read(study.suite), args.limit)
            lines += forecast(study, due, args)
    return "\n".join(lines)
