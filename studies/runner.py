"""Do the runs that are missing, some at a time, alone or beside other processes and machines."""

import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.timing import environment
from engine.devices import device_of
from engine.errors import InputError
from studies.claims import Database, Locks
from studies.data import prepare
from studies.entries import Study
from studies.job import Job, Place, RunFailed
from studies.kinds import KINDS
from studies.plan import Run, plan
from studies.records import Records

POLL = 1.0  # seconds between looks for a run that others may have left or made possible


class Runner:
    """Runs of several studies. A failed one is left out, and the others go on."""

    def __init__(self, studies: list[Study], records: Records, args):
        self.studies, self.records, self.args = studies, records, args
        rows = zlib.crc32(f"{args.data_dir} {args.limit}".encode())
        self.root = Path(args.folder).resolve() / f"rows-{rows:08x}"
        self.place = Place(self.root, args.use_gpu, args.jobs)
        self.claims = Database(args.storage) if args.storage else Locks(self.root / "claims")
        self.lock, self.mine, self.failed = threading.Lock(), set(), {}
        self.facts = environment(device_of(args.use_gpu)) | {"jobs": args.jobs}

    def run(self) -> None:
        """All missing runs. InputError if some failed, when the others are done."""
        try:
            if self.due():
                prepare(self.args.data_dir, self.root / "data", self.args.limit)
            with ThreadPoolExecutor(self.args.jobs) as pool:
                try:
                    for work in [pool.submit(self._work) for _ in range(self.args.jobs)]:
                        work.result()
                finally:
                    self.place.stop()
        finally:
            self.claims.close()
        if self.failed:
            first, reason = next(iter(self.failed.items()))
            raise InputError(f"{len(self.failed)} runs failed: {first}: {reason}")

    def due(self) -> list[Run]:
        """What can begin now, or is at work."""
        suites = {study.suite for study in self.studies}
        records = {suite: self.records.read(suite) for suite in suites}
        self._collect(records)
        runs = []
        for study in self.studies:
            _, due, _ = plan(study, records[study.suite], self.args.limit)
            runs += [run for run in due if str(run) not in self.failed]
        return runs

    def _collect(self, records: dict[str, list[dict]]) -> None:
        """Write down what other machines have done of these suites."""
        for suite, record in self.claims.kept():
            if suite in records and record not in records[suite]:
                self.records.append(suite, record)
                records[suite].append(record)

    def _work(self) -> None:
        try:
            while run := self._next():
                self._do(run)
        except BaseException:
            self.place.stop()
            raise

    def _next(self) -> Run | None:
        """A run that this process has claimed; None when nothing is left to do or to wait for."""
        while not self.place.stopped.is_set():
            with self.lock:
                due = self.due()
                for run in due:
                    if run.digest not in self.mine and self._claim(run):
                        return run
            if not due:
                break
            self.place.stopped.wait(POLL)
        return None

    def _claim(self, run: Run) -> bool:
        """Claim it, unless another process has done it since the last look."""
        if not self.claims.take(run.digest):
            return False
        if any(run.is_in(record) for record in self.records.read(run.study.suite)):
            self.claims.give_back(run.digest)
            return False
        self.mine.add(run.digest)
        return True

    def _do(self, run: Run) -> None:
        print(f"{run} …", flush=True)
        job = Job(run, self.place, self.root / "work" / run.digest)
        try:
            figures, epochs = KINDS[run.settings["kind"]](job)
        except (RunFailed, InputError) as error:
            if not self.place.stopped.is_set():
                self.failed[str(run)] = str(error)
                print(f"{run}: {error}", flush=True)
            self._let_go(run)
            return
        record = self._record(run, job, figures, epochs)
        with self.lock:
            self.records.append(run.study.suite, record)
            self.claims.keep(run.digest, run.study.suite, record)
            self._let_go(run)
        shutil.rmtree(job.folder, ignore_errors=True)
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{run}: {text} ({job.seconds:.0f} s)", flush=True)

    def _let_go(self, run: Run) -> None:
        self.mine.discard(run.digest)
        self.claims.give_back(run.digest)

    def _record(self, run: Run, job: Job, figures: dict, epochs: list[dict]) -> dict:
        name, contestant, lr, seeds = run.key
        facts = self.facts | {"date": time.strftime("%Y-%m-%d")}
        return {
            **{"study": name, "task": run.study.task, "contestant": contestant},
            **{"lr": lr, "seeds": list(seeds), "figures": figures, "epochs": epochs},
            **{"seconds": round(job.seconds, 1), "peak_mb": job.peak_mb and round(job.peak_mb)},
            **{"settings": run.settings, "commands": job.commands, **facts},
        }
