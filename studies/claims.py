"""Who does which run: locks of one machine, or a table that several machines share.

A claim is made by one of them alone. The claim of a process that died is free again: of a lock the
operating system sees to that; in a database a claim is renewed while its owner lives.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from engine.database_url import masked
from engine.errors import InputError, excerpt, optional
from engine.files import is_alive, process_mark

RENEWED, EXPIRED = 30, 300  # seconds: between renewals, and without one


class Locks:
    """Claims among the processes of one machine: a locked file each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.held: dict[str, FileLock] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str) -> bool:
        """Claim a run; False if another one has it."""
        lock = FileLock(self.folder / f"{name}.lock", is_singleton=False, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self.held[name] = lock
        return True

    def give_back(self, name: str) -> None:
        self.held.pop(name).release()

    def keep(self, name: str, suite: str, record: dict) -> None:
        """Show a run's record to others: here they read the file."""

    def kept(self) -> Iterator[tuple[str, dict]]:
        """(suite, record) of each run that others did."""
        return iter(())

    def close(self) -> None:
        for name in list(self.held):
            self.give_back(name)


class Database:
    """Claims and records in a table of SQLite, PostgreSQL or what else SQLAlchemy opens.

    A claim that was not renewed for EXPIRED seconds, or whose process is gone from this machine, is
    free. Machines whose clocks differ by more than that would take each other's runs.
    """

    def __init__(self, url: str):
        self.sql = sql = optional("sqlalchemy", "--storage", "sqlalchemy")
        self.owner, self.held = f"{socket.gethostname()}:{process_mark()}", set()
        self.ended = threading.Event()
        self.table = sql.Table(
            "study_runs",
            sql.MetaData(),
            sql.Column("name", sql.String(64), primary_key=True),
            sql.Column("owner", sql.String(255)),
            sql.Column("seen", sql.Float),
            sql.Column("suite", sql.String(64)),
            sql.Column("record", sql.Text),
        )
        waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        try:
            self.engine = sql.create_engine(url, **waiting)
            self.table.create(self.engine, checkfirst=True)
        except Exception as error:  # of SQLAlchemy, of its drivers
            reason = excerpt(masked(f"{type(error).__name__}: {error}", url))
            raise InputError(
                f"--storage {masked(url, url)}: cannot be opened ({reason})"
            ) from error
        threading.Thread(target=self._keep_renewing, daemon=True).start()

    def take(self, name: str) -> bool:
        table, now = self.table, time.time()
        mine = {"owner": self.owner, "seen": now}
        with contextlib.suppress(self.sql.exc.IntegrityError), self.engine.begin() as connection:
            connection.execute(table.insert().values(name=name, **mine))
            self.held.add(name)
            return True
        with self.engine.begin() as connection:
            row = connection.execute(table.select().where(table.c.name == name)).first()
            if row is None or row.record is not None or not self._is_free(row, now):
                return False
            unchanged = (table.c.owner == row.owner) & (table.c.seen == row.seen)
            change = table.update().where((table.c.name == name) & unchanged).values(**mine)
            taken = connection.execute(change).rowcount == 1
        self.held |= {name} if taken else set()
        return taken

    def _is_free(self, row, now: float) -> bool:
        host, _, mark = row.owner.rpartition(":")
        if host == socket.gethostname() and not is_alive(int(mark.partition("-")[0])):
            return True
        return now - row.seen > EXPIRED

    def give_back(self, name: str) -> None:
        self.held.discard(name)
        table = self.table
        unfinished = (table.c.name == name) & table.c.record.is_(None)
        with self.engine.begin() as connection:
            connection.execute(table.delete().where(unfinished & (table.c.owner == self.owner)))

    def keep(self, name: str, suite: str, record: dict) -> None:
        table, text = self.table, json.dumps(record, ensure_ascii=False)
        with self.engine.begin() as connection:
            change = table.update().where(table.c.name == name)
            connection.execute(change.values(suite=suite, record=text))

    def kept(self) -> Iterator[tuple[str, dict]]:
        table = self.table
        with self.engine.begin() as connection:
            rows = connection.execute(table.select().where(table.c.record.is_not(None))).all()
        return ((row.suite, json.loads(row.record)) for row in rows)

    def close(self) -> None:
        self.ended.set()
        for name in list(self.held):
            self.give_back(name)
        self.engine.dispose()

    def renew(self) -> None:
        """Say of the claims that their owner lives."""
        table = self.table
        held = table.c.name.in_(list(self.held)) & (table.c.owner == self.owner)
        with self.engine.begin() as connection:
            connection.execute(table.update().where(held).values(seen=time.time()))

    def _keep_renewing(self) -> None:
        while not self.ended.wait(RENEWED):
            with contextlib.suppress(self.sql.exc.SQLAlchemyError):  # the next one may succeed
                self.renew()
