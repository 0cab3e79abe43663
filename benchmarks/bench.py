"""What all benchmarks share: how much to run, a fresh schema for each run, jobs in it, and pairs that take turns."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import conninfo, sql

from workers import migrate

from .report import Pair, Sample

__all__ = [
    "Options",
    "Scale",
    "fill",
    "fresh_database",
    "fresh_schema",
    "interleave",
    "rows",
    "run",
    "wal",
]

T = TypeVar("T")


class Scale(Enum):
    """How much to run: what the figures are about, each in under 20 s, or just enough to see that it works."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"


class Options(msgspec.Struct, frozen=True):
    """The server, how much to run, and the event loop of both sides."""

    dsn: str
    scale: Scale = Scale.FULL
    uvloop: bool = False

    def pick(self, *, full: T, quick: T, tiny: T) -> T:
        """The value for this scale."""
        return {Scale.FULL: full, Scale.QUICK: quick, Scale.TINY: tiny}[self.scale]

    @property
    def pairs(self) -> int:
        """How many interleaved pairs a ratio is the median of."""
        return self.pick(full=5, quick=3, tiny=1)

    @property
    def loop_factory(self) -> Callable[[], Any] | None:
        """For asyncio.Runner."""
        if not self.uvloop:
            return None
        import uvloop

        return uvloop.new_event_loop


def run(options: Options, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a new event loop."""
    with asyncio.Runner(loop_factory=options.loop_factory) as loop:
        return loop.run(work)


def interleave(
    pairs: int, library: Callable[[], Sample], limit: Callable[[], Sample]
) -> list[Pair]:
    """Run both sides in turns. Which is first changes, so that neither always follows on the other."""
    measured = []
    for number in range(pairs):
        if number % 2:
            after = limit()
            measured.append((library(), after))
        else:
            measured.append((library(), limit()))
    return measured


@contextmanager
def fresh_schema(options: Options, *, settings: str = "") -> Iterator[str]:
    """A DSN whose search_path is a new, migrated schema; dropped afterwards. `settings`: further options."""
    schema = f"bench_{secrets.token_hex(6)}"
    dsn = conninfo.make_conninfo(options.dsn, options=f"-csearch_path={schema} {settings}")
    name = sql.Identifier(schema)
    with psycopg.connect(options.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        try:
            migrate(dsn)
            yield dsn
        finally:
            conn.execute("SET client_min_messages = warning")
            conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(name))


@contextmanager
def fresh_database(options: Options) -> Iterator[str]:
    """A DSN of a new, migrated database, for what the server counts by database; dropped afterwards."""
    database = f"bench_{secrets.token_hex(6)}"
    dsn = conninfo.make_conninfo(options.dsn, dbname=database)
    name = sql.Identifier(database)
    with psycopg.connect(options.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            migrate(dsn)
            yield dsn
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def fill(
    dsn: str, n: int, *, first: int = 0, job_type: str = "noop", columns: str = "", values: str = ""
) -> None:
    """Insert `n` jobs, numbered from `first`, and leave the table as a vacuumed and analyzed one would be.

    All indexes stay in place, as they would in production. `columns` and `values` are SQL and set further columns.
    """
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            f"INSERT INTO background_jobs (job_type, queue, data {columns and ',' + columns})"
            f" SELECT '{job_type}', 'default', jsonb_build_object('number', n) {values and ',' + values}"
            f" FROM generate_series({first}, {first + n - 1}) AS n"
        )
        conn.execute("VACUUM ANALYZE background_jobs")
        # no run pays for the checkpoint of what was written before it
        conn.execute("CHECKPOINT")


def rows(dsn: str) -> int:
    """How many jobs are left."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute("SELECT count(*) FROM background_jobs").fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def wal(dsn: str) -> Iterator[list[float]]:
    """Bytes of write-ahead log that the block made; appended to the list when it is left."""
    written: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        yield written
        row = conn.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", before
        ).fetchone()
        assert row is not None
        written.append(float(row[0]))
