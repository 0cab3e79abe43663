"""The fault harness: each row of the table injects one fault on a real server, again and again, and counts.

`python -m tests.faults` (`make faults`) runs the rows at full size and writes docs/reliability.md; the tests run each one
small. A row is a function that takes a `Bench` and returns what it `Found`:

    @row("1", "worker SIGKILL", "kill -9 at random points; its jobs start again within 3 s")
    def killed_workers(bench: Bench) -> Found: ...

What is counted, over the histories that everybody who took part wrote: `lost`, acknowledged and never finished;
`unexpected`, ran and was never enqueued; `duplicated`, finished more than once; `stale_accepted`, a write under a claim that
was no longer valid and took effect all the same. The first two and the last must be 0 in every row.

The invariants, and who looks after them:

* I1, what was acknowledged ran, and not before its commit was sent: `Found.judge`, by the histories;
* I2, a transactional job has one effect: `judging.effects_once`;
* I3, never two claims on one job: the audit of each row's tables, and `Found.judge`, which sees jobs that overlap;
* I4, no write under a stale claim took effect: the audit, and what a row itself brings about;
* I5, no attempt both deleted and retried its job: the audit;
* I6, nothing ran that was never enqueued: `Found.judge`;
* I7, in the end the tables are empty, or what is left is explained: `judging.swept_away`.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import sql

from tests.helpers import audit
from tests.helpers.history import History, Verdict
from tests.helpers.nursery import Nursery
from tests.helpers.own_server import NoOwnServerError, OwnServer, own_server
from tests.helpers.processes import Crew, crew
from tests.helpers.server import connection_url
from workers import migrate

__all__ = [
    "ROWS",
    "Bench",
    "CannotRunError",
    "Found",
    "Report",
    "Row",
    "Scale",
    "not_built",
    "row",
    "run",
    "warm",
]

T = TypeVar("T")

#: Of schemas, in this process.
_numbers = count(1)


class CannotRunError(Exception):
    """This machine can't run the row; the message says what is missing."""


class Scale(Enum):
    """How often a fault is injected: as often as the table says, for a look of a minute, or once or twice, in the tests."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"


class Found(msgspec.Struct, kw_only=True):
    """What a row counted. `recovery_s`: the longest time until things went on, in seconds. `broken`: what was not as it
    should be, in plain words; a row passes when there is nothing in it."""

    injected: int
    jobs: int
    lost: int = 0
    unexpected: int = 0
    duplicated: int = 0
    stale_accepted: int = 0
    recovery_s: float | None = None
    broken: list[str] = []
    late: list[float] = []

    def expect(self, holds: bool, otherwise: str) -> None:
        """Say what is broken unless it `holds`."""
        if not holds:
            self.broken.append(otherwise)

    def recovered(self, seconds: float, *, within: float | None = None) -> None:
        """Take note of a recovery, and say so if it took too long."""
        self.recovery_s = max(seconds, self.recovery_s or 0.0)
        if within is not None and seconds > within:
            self.late.append(seconds)

    def judge(self, verdict: Verdict, *, duplicates: int = 0, by_kills: bool = False) -> None:
        """Take over the counts of a verdict; up to so many `duplicates` are what the fault explains, `by_kills` only those
        that had ended in a process which was killed or frozen then."""
        if by_kills:
            self.expect(
                not verdict.repeated, f"finished by the living, and again: {verdict.repeated[:10]}"
            )
        self.lost += len(verdict.lost)
        self.unexpected += len(verdict.unexpected)
        self.duplicated += len(verdict.duplicated)
        self.expect(
            not verdict.overlapping, f"begun again while still at work: {verdict.overlapping[:10]}"
        )
        self.expect(
            len(verdict.duplicated) <= duplicates,
            f"finished twice, where at most {duplicates} may: {verdict.duplicated[:10]}",
        )
        for what in ("lost", "unexpected", "premature"):
            if ids := getattr(verdict, what):
                self.broken.append(f"{what}: jobs {ids[:10]}{' and more' if len(ids) > 10 else ''}")


class Bench:
    """What a row works with. Everything that it opens is closed with the `with` block."""

    def __init__(
        self, scale: Scale, seed: int, dsn: str, nursery: Nursery, folder: Path, margin: float = 1.0
    ) -> None:
        self.scale = scale
        self.seed = seed
        self.chance = random.Random(seed)
        self.dsn = dsn
        self.folder = folder
        #: Bounds in time are stretched by it: in the tests, on a machine that is busy with other things.
        self.margin = margin
        #: What was found in the audits.
        self.found = Found(injected=0, jobs=0)
        self._nursery = nursery
        self._numbers = count(1)

    def pick(self, *, full: T, quick: T, tiny: T) -> T:
        """The value for this scale."""
        return {Scale.FULL: full, Scale.QUICK: quick, Scale.TINY: tiny}[self.scale]

    @contextlib.contextmanager
    def database(self, server: str | None = None) -> Iterator[str]:
        """A URL of a new schema with the tables, on the shared server or on the one given; dropped afterwards."""
        dsn = server or self.dsn
        name = f"faults_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        url = connection_url(dsn, options=f"-csearch_path={name}")
        migrate(url)
        with self.audited(url, name):
            yield url
        # one on the row's own server goes as a whole; one of a row that broke off is left to be looked at
        if server is None:
            with psycopg.connect(dsn, autocommit=True) as admin:
                admin.execute("SET client_min_messages = warning")
                admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def audited(self, url: str, schema: str, *, afterwards: str = "") -> Iterator[None]:
        """The job table of this schema, which `url` leads to, and in the end maybe `afterwards`, is audited, and what was
        found is added to the row's."""
        with psycopg.connect(url, autocommit=True) as conn:
            audit.install(conn, schema)
        yield
        with psycopg.connect(afterwards or url, autocommit=True) as conn:
            findings = audit.judge(conn)
        self.found.stale_accepted += len(findings.stale)
        for text, what in (
            ("claimed while somebody had it (I3)", findings.taken),
            ("written by one whose job it was no longer (I4)", findings.stale),
            ("ended twice in one attempt (I5)", findings.ended_twice),
        ):
            self.found.expect(not what, f"{text}: {what[:5]}")
        if findings.changes:
            path = self.folder / f"audit-{next(self._numbers)}.jsonl"
            lines = [msgspec.json.encode(change) + b"\n" for change in findings.changes]
            path.write_bytes(b"".join(lines))

    @contextlib.contextmanager
    def server(self, *, tcp: bool = False, folder: Path | None = None) -> Iterator[OwnServer]:
        """A server of the row's own, with fsync on, to be crashed."""
        with own_server(tcp=tcp, folder=folder) as started:
            yield started

    @contextlib.contextmanager
    def history(self) -> Iterator[History]:
        """A history, also in a file that is kept when the row fails."""
        opened = History(self.folder / f"history-{next(self._numbers)}.jsonl")
        try:
            yield opened
        finally:
            opened.close()

    @contextlib.contextmanager
    def workers(self, url: str, history: History) -> Iterator[Crew]:
        """Worker processes, killed at the end."""
        with crew(self._nursery, url, history, seed=self.chance.random()) as opened:
            yield opened

    @contextlib.contextmanager
    def stage(self) -> Iterator[tuple[str, psycopg.Connection[Any], History, Crew]]:
        """All that most rows need: a database on the shared server, a connection, a history, worker processes."""
        with (
            self.database() as url,
            psycopg.connect(url, autocommit=True) as conn,
            self.history() as history,
            self.workers(url, history) as workers,
        ):
            yield url, conn, history, workers


class Row(msgspec.Struct, frozen=True):
    """A line of the table. `missing`: why it can't be run; then it has no function."""

    name: str
    fault: str
    passes: str
    run: Callable[[Bench], Found] | None = None
    missing: str = ""


class Report(msgspec.Struct, kw_only=True):
    """One row's result, as `--json` prints it."""

    row: str
    fault: str
    injected: int
    jobs: int
    lost: int
    unexpected: int
    duplicated: int
    stale_accepted: int
    recovery_s: float | None
    passed: bool
    seed: int
    seconds: float
    broken: list[str] = []
    not_run: str = ""


ROWS: dict[str, Row] = {}


def row(
    name: str, fault: str, passes: str
) -> Callable[[Callable[[Bench], Found]], Callable[[Bench], Found]]:
    """Enter a function into the table."""

    def enter(function: Callable[[Bench], Found]) -> Callable[[Bench], Found]:
        ROWS[name] = Row(name, fault, passes, function)
        return function

    return enter


def not_built(name: str, fault: str, passes: str, missing: str) -> None:
    """A line that can't be run yet, and why: the table says so, nothing is skipped in silence."""
    ROWS.setdefault(name, Row(name, fault, passes, missing=missing))


def warm(dsn: str) -> None:
    """Wait until the server has been up for 5 s: before, a free lock means nothing (rule 19)."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_sleep(greatest(0, 5.1 - extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())))"
        )


def run(
    entry: Row,
    scale: Scale,
    seed: int,
    dsn: str,
    nursery: Nursery,
    *,
    margin: float = 1.0,
) -> Report:
    """Run one row; an exception is a failure like any other, in plain words."""
    began = time.monotonic()
    if entry.run is None:
        return _report(
            entry, Found(injected=0, jobs=0, broken=[]), seed, 0.0, not_run=entry.missing
        )
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{entry.name}-"))
    bench = Bench(scale, seed, dsn, nursery, folder, margin)
    try:
        found = entry.run(bench)
    except (CannotRunError, NoOwnServerError) as error:
        return _report(entry, Found(injected=0, jobs=0), seed, 0.0, not_run=str(error))
    except Exception as error:
        lines = traceback.format_exception(error)
        found = Found(injected=0, jobs=0, broken=[f"the row broke off: {''.join(lines)}"])
    found.broken += bench.found.broken
    found.stale_accepted += bench.found.stale_accepted
    for what in ("lost", "unexpected", "stale_accepted"):
        if (number := getattr(found, what)) and not any(what in text for text in found.broken):
            found.broken.append(f"{what}: {number}")
    if found.late:
        found.broken.append(
            f"{len(found.late)} recoveries took too long, the longest {max(found.late):.2f} s"
        )
    if found.broken:
        found.broken.append(
            f"its histories are in {folder}; `python -m tests.faults --judge FILE` judges one again"
        )
    else:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return _report(entry, found, seed, time.monotonic() - began)


def _report(entry: Row, found: Found, seed: int, seconds: float, not_run: str = "") -> Report:
    return Report(
        row=entry.name,
        fault=entry.fault,
        injected=found.injected,
        jobs=found.jobs,
        lost=found.lost,
        unexpected=found.unexpected,
        duplicated=found.duplicated,
        stale_accepted=found.stale_accepted,
        recovery_s=None if found.recovery_s is None else round(found.recovery_s, 3),
        passed=not found.broken and not not_run,
        seed=seed,
        seconds=round(seconds, 1),
        broken=found.broken,
        not_run=not_run,
    )
