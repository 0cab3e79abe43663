"""Versions of an application, each from an install of the library of its own, and the deployment of one after the other."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found
from tests.helpers.history import PATIENCE, Event, History, by
from tests.helpers.installs import Install
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually

__all__ = ["ONLY_NEW", "WORKERS", "Rollout", "Version", "enqueueing"]

#: What only the new version works, by type or by queue.
ONLY_NEW = "(job_type IN ('newer', 'newer_elsewhere') OR queue = 'newer')"
#: Jobs at a time, of one queue.
WORKERS = 4
#: Rows of the new version that are there when it is looked whether they are touched.
_ENOUGH = 5
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Version:
    """Processes of one version, and the job types that it knows."""

    install: Install
    crew: Crew
    types: str
    #: Its producers wait while so many jobs do: the old version's workers leave the new one's alone.
    stock: int

    def start(self) -> WorkerProcess:
        """Start a worker."""
        return self.crew.start(self.types, "--library", workers=WORKERS, poll_interval=0.2)


@contextlib.contextmanager
def enqueueing(version: Version) -> Iterator[None]:
    """A producer of this version, until the end of the block. Raises RuntimeError when it did not end well."""
    options = {"stock": version.stock, "seconds": 0.02, "database_url": version.crew.database_url}
    producer = version.crew.start_producer(version.types, **options)
    version.crew.history.wait_for("ok", "gone", where=by(producer.name))
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            producer.tell("stop")
        if status := producer.wait():
            raise RuntimeError(f"{producer.name} ended with status {status}; see its output")


class Rollout:
    """The processes that work, and their replacement one by one."""

    def __init__(
        self, bench: Bench, found: Found, conn: psycopg.Connection[Any], history: History
    ) -> None:
        self._bench = bench
        self._found = found
        self._conn = conn
        self._history = history
        self._fleet: list[WorkerProcess] = []
        self._size = bench.pick(full=3, quick=3, tiny=2)
        # jobs that begin between two replacements
        self._between = bench.pick(full=50, quick=50, tiny=15)
        self.kills = 0

    def first(self, version: Version) -> None:
        """Only these."""
        self._fleet = [version.start() for _ in range(self._size)]
        for member in self._fleet:
            self._ready(member, version)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """While there are only old ones, not even a new version of a row that they do not know is written."""
        query = f"SELECT id, ctid::text, xmin::text FROM background_jobs WHERE {ONLY_NEW}"
        eventually(lambda: self._conn.execute(query).rowcount >= _ENOUGH)
        before = set(self._conn.execute(query))
        yield
        self.more_begin(2 * self._between)
        changed = before - set(self._conn.execute(query))
        self._found.expect(not changed, f"rows that were touched: {sorted(changed)[:10]}")

    def deploy(self, version: Version) -> None:
        """Replace all of them: a new one is ready before an old one ends, in order or not."""
        for number, member in enumerate(self._fleet):
            self._fleet[number] = version.start()
            self._ready(self._fleet[number], version)
            self._writes_its_release(self._fleet[number], version)
            if self._bench.chance.random() < 0.3:
                member.kill()
                self.kills += 1
            else:
                member.send(signal.SIGTERM)
                self._found.expect(member.wait() == 0, f"{member.name} did not end well")
            self._found.injected += 1
            self.more_begin(self._between)

    def _ready(self, member: WorkerProcess, version: Version) -> None:
        member.ready()
        said = [event.text for event in self._history.events("log", where=by(member.name))]
        library = f"library {version.install.library}"
        self._found.expect(library in said, f"{member.name} is not from {version.install.folder}")

    def _writes_its_release(self, member: WorkerProcess, version: Version) -> None:
        query = "SELECT release FROM worker_sessions WHERE name = %s"
        rows = self._conn.execute(query, [member.name]).fetchall()
        expected = version.install.release
        self._found.expect(rows == [(expected,)], f"{member.name} is not {expected}: {rows}")

    def more_begin(self, count: int) -> list[Event]:
        """Wait until so many more jobs have begun; all that have."""
        so_far = len(self._history.events("start"))
        return self._history.wait_for("start", count=so_far + count, seconds=_PATIENCE)

    def nothing_claimed_by(self, version: Version) -> None:
        """Of what only the new version works."""
        rows = self._conn.execute(
            "SELECT job.id, session.name FROM worker_sessions AS session"
            " JOIN background_jobs AS job ON session.id = session_id"
            f" WHERE {ONLY_NEW} AND session.name = ANY(%s)",
            [[member.name for member in version.crew.members]],
        ).fetchall()
        self._found.expect(not rows, f"claimed by old processes: {rows[:10]}")

    def end(self) -> None:
        """All of them, in order."""
        for member in self._fleet:
            member.send(signal.SIGTERM)
            self._found.expect(member.wait(PATIENCE) == 0, f"{member.name} did not end well")
