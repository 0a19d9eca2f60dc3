"""A chain: a command is started and killed several times, resumed to its end, and compared."""

import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from storm.jobs import Job
from storm.outputs import differences, held_locks
from storm.processes import Started

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
PATIENCE = 60  # seconds for the end after a signal, and for a start beyond its usual time
GRACE = 5  # seconds for children to end after their parent, beyond what a start takes: imports
NOT_BEGUN = "error: --resume: no "
STOPPING = "stopping where nothing is half done"


@dataclass
class Reference:
    """An uninterrupted run of a job: its folder, and the seconds that it took, forked and not."""

    job: Job
    folder: Path
    seconds: dict[bool, float]


@dataclass
class Chain:
    """One chain and what came of it; inputs: the folder whose content each command reads."""

    reference: Reference
    inputs: Path
    folder: Path
    draw: random.Random
    forked: bool
    anew: bool  # whether a finished run was there before
    kills: Counter = field(default_factory=Counter)
    starts: int = 0
    problems: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Kill the command one to four times, let it end, and compare."""
        if self.anew:
            shutil.copytree(self.reference.folder, self.folder, symlinks=True)
        else:
            prepare(self.inputs, self.folder)
        for number in range(self.draw.randint(1, 4)):
            self.attempt(resume=number > 0 and self.draw.random() < 0.8, killed=True)
        if not self.attempt(resume=True, killed=False):  # there is nothing to go on with
            self.attempt(resume=False, killed=False)
        self.problems += held_locks(self.folder)
        self.problems += differences(self.reference.folder, self.folder)

    def attempt(self, *, resume: bool, killed: bool) -> bool:
        """One start; whether it came to its end. What it says and leaves running is checked."""
        usual = self.reference.seconds[self.forked]
        started = start(self.reference.job, self.folder, resume=resume, forked=self.forked)
        self.starts += 1
        sent = []
        if killed and not started.ends_within(self.draw.uniform(0.02, 1) * usual):
            sent = self.kill(started)
        if not started.ends_within(PATIENCE if sent else PATIENCE + 3 * usual):
            self.problems.append(f"no end after {_names(sent)}")
            started.send(signal.SIGKILL)
            started.ends_within(PATIENCE)
        if orphans := started.orphans(GRACE + usual):
            self.problems.append(f"{len(orphans)} processes outlive it after {_names(sent)}")
        self.problems += wrong_end(started, sent, resume, self.reference.job.processes)
        return started.code == 0

    def kill(self, started: Started) -> list[signal.Signals]:
        """Send a signal; a cluster's SIGTERM may be followed by SIGKILL. Returns what was sent.

        Of a group, SIGKILL hits the one that started it, one of its processes, or all.
        """
        number = self.draw.choice(SIGNALS)
        self.kills[number.name] += 1
        others = started.others() if self.reference.job.processes > 1 else []
        victims = [None]
        if number == signal.SIGKILL and others:
            victims = self.draw.choice([victims, [self.draw.choice(others)], [None, *others]])
        for victim in victims:
            started.send(number, victim)
        impatient = number == signal.SIGTERM and self.draw.random() < 0.2
        if impatient and not started.ends_within(self.draw.uniform(0, 0.2)):
            started.send(signal.SIGKILL)
            self.kills[signal.SIGKILL.name] += 1
            return [number, signal.SIGKILL]
        return [number]


def prepare(inputs: Path, folder: Path) -> None:
    """A folder with links to what the commands read."""
    folder.mkdir(parents=True)
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)


def start(job: Job, folder: Path, *, resume: bool, forked: bool) -> Started:
    return Started(job.words(resume), folder, folder.with_name(f"{folder.name}.log"), forked=forked)


def wrong_end(started: Started, sent: list[signal.Signals], resume: bool, processes: int) -> list:
    """What is wrong with an exit code and the lines on stderr, if anything is.

    Of several processes torchrun decides both, and it shows its own traceback.
    """
    code, said = started.code, [line for line in started.said if not line.startswith(STOPPING)]
    refused = resume and any(line.startswith(NOT_BEGUN) for line in said)
    if processes > 1:
        right = code == 0 or sent or refused
    elif code == 0:
        right = not said
    elif code == 2:
        right = refused and len(said) == 1
    else:
        early = not started.printed  # while Python imports, it is the system that ends it
        right = any(_is_right(number, code, said, early) for number in sent)
    return [] if right else [f"exit code {code} after {_names(sent)}: {' | '.join(said)[-600:]}"]


def _is_right(sent: signal.Signals, code: int, said: list[str], early: bool) -> bool:
    """Whether a command ended by a signal as it should: in a line, or dead."""
    if sent == signal.SIGKILL:
        return code == -sent and not any("Traceback" in line for line in said)
    how = "interrupted: " if sent == signal.SIGINT else f"stopped by {sent.name}: "
    in_a_line = code == 128 + sent and len(said) == 1 and said[0].startswith(how)
    return in_a_line or (early and code == -sent and not said)


def _names(sent: list[signal.Signals]) -> str:
    return " and ".join(number.name for number in sent) or "no signal"
