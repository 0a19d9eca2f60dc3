"""One process at a time writes into a run's folder; a dead one's lock is free by itself."""

import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import InputError, notice
from engine.files import check_writable


class RunLock:
    """A lock of the operating system on `.lock` in the folder; may be entered again inside.

    `.owner` says who holds it, for the message to others. wait: until it is free, instead.
    """

    def __init__(self, folder: Path, *, wait: bool = False):
        self.folder, self.depth, self.wait = folder, 0, wait
        self.lock, self.owner = FileLock(folder / ".lock"), folder / ".owner"

    def __enter__(self) -> None:
        if self.depth == 0:
            check_writable(self.owner)
            self._acquire()
        self.depth += 1

    def __exit__(self, *_) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.owner.unlink(missing_ok=True)
            self.lock.release()

    def _acquire(self) -> None:
        try:
            self.lock.acquire(timeout=-1 if self.wait else 0)
        except Timeout as error:
            owner = "another process"
            if self.owner.exists():
                owner = self.owner.read_text(encoding="utf-8").strip() or owner
            raise InputError(
                f"{self.folder}: {owner} is at work on this run: wait for it or stop it, or give "
                f"other flags or another --runs_dir"
            ) from error
        except (NotImplementedError, OSError) as error:  # some network drives have no locks
            notice(f"{self.folder}: cannot be locked ({error}): start this run only once")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"process {os.getpid()} on {socket.gethostname()} (since {since})"
        self.owner.write_text(f"{text}\n", encoding="utf-8")
