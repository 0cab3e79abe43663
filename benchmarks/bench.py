"""What all benchmarks share: a server, a fresh schema for each run, and jobs that count themselves."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import conninfo

from workers import BackgroundJob, migrate

__all__ = ["Counter", "Noop", "Options", "fresh_schema", "fill", "wal"]


class Options(msgspec.Struct, frozen=True):
    """How to run: the server's DSN, jobs a run, interleaved pairs, and the event loop."""

    dsn: str
    quick: bool = False
    uvloop: bool = False

    @property
    def loop_factory(self) -> Callable[[], Any] | None:
        """For asyncio.Runner."""
        if not self.uvloop:
            return None
        import uvloop

        return uvloop.new_event_loop


class Counter:
    """How often each job ran. Doubles as the jobs' context."""

    def __init__(self, n: int) -> None:
        self.runs = bytearray(n)

    @property
    def exactly_once(self) -> bool:
        """Whether every job ran once."""
        return self.runs == b"\x01" * len(self.runs)


class Noop(BackgroundJob[Counter]):
    """Does nothing but say that it ran."""

    job_name = "noop"

    number: int

    async def run(self, counter: Counter) -> None:
        counter.runs[self.number] += 1


@contextmanager
def fresh_schema(options: Options) -> Iterator[str]:
    """A DSN whose search_path is a new, migrated schema; dropped afterwards."""
    schema = f"bench_{secrets.token_hex(6)}"
    dsn = conninfo.make_conninfo(options.dsn, options=f"-csearch_path={schema}")
    with psycopg.connect(options.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {schema}")
        try:
            migrate(dsn)
            yield dsn
        finally:
            conn.execute(f"DROP SCHEMA {schema} CASCADE")


def fill(dsn: str, n: int, **columns: str) -> None:
    """Insert `n` no-op jobs, numbered, and leave the table as an analyzed one would be."""
    extra = "".join(f", {name}" for name in columns)
    values = "".join(f", {value}" for value in columns.values())
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            f"INSERT INTO background_jobs (job_type, queue, data{extra})"
            f" SELECT 'noop', 'default', jsonb_build_object('number', n){values}"
            f" FROM generate_series(0, {n - 1}) AS n"
        )
        conn.execute("VACUUM ANALYZE background_jobs")
        conn.execute("CHECKPOINT")


@contextmanager
def wal(dsn: str) -> Iterator[list[float]]:
    """Bytes of write-ahead log that the block made; appended to the list when it is left."""
    written: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        yield written
        row = conn.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", before).fetchone()
        assert row is not None
        written.append(float(row[0]))
