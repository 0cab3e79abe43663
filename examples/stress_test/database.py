"""The database of a run: where it is, and what it says about the jobs."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row

from workers import migrate
from workers.embedded import resolve_dsn
from workers.migrations import check_migrations

from .game import SCHEMA, SHARES
from .ledger import Fate
from .options import Options

__all__ = ["Records", "Tally", "prepare"]

Connection = psycopg.AsyncConnection[Any]
JOB_TYPES = [kind.job_name for kind in SHARES]

# One statement, hence one snapshot: a job on its way from one table to another is seen in exactly one of them.
FATES = """
SELECT id, queue, 'completed' AS fate, retries, crashes
FROM archived_jobs WHERE id > %(since)s AND job_type = ANY(%(job_types)s) AND state = 'completed'
UNION ALL
SELECT id, queue, 'dead', retries, crashes
FROM dead_jobs WHERE id > %(since)s AND job_type = ANY(%(job_types)s)
UNION ALL
SELECT id, queue, 'waiting', retries, crashes
FROM background_jobs WHERE id > %(since)s AND job_type = ANY(%(job_types)s)
"""

TALLY = f"""
SELECT queue, fate, count(*) AS jobs, sum(retries) AS retries
FROM ({FATES}) AS job GROUP BY queue, fate
"""
BADGES = "SELECT job_id FROM stress_badges WHERE job_id > %(since)s"


class Tally(NamedTuple):
    """How many jobs of a queue met one fate, and how often they had failed."""

    queue: str
    fate: str
    jobs: int
    retries: int


def prepare(options: Options) -> str:
    """Return the DSN of the database, with its tables set up; an embedded server ends with this process.

    Raises ConfigurationError, MigrationError and psycopg.Error.
    """
    dsn = resolve_dsn(options.database_url or "embedded:")
    if options.skip_db_setup:
        check_migrations(dsn)
    else:
        migrate(dsn)
        with psycopg.connect(dsn) as conn:
            conn.execute(SCHEMA)
    return dsn


class Records:
    """Reads what became of the jobs that are enqueued from now on."""

    def __init__(self, conn: Connection, since: int) -> None:
        self._conn = conn
        self._range = {"since": since, "job_types": JOB_TYPES}

    @classmethod
    async def begin(cls, conn: Connection) -> Records:
        """Begin at the next job's id."""
        cursor = await conn.execute("SELECT nextval('background_jobs_id_seq')")
        return cls(conn, (await cursor.fetchall())[0][0])

    async def tally(self) -> list[Tally]:
        """Return the figures of the moment."""
        async with self._conn.cursor(row_factory=class_row(Tally)) as cursor:
            return await (await cursor.execute(TALLY, self._range)).fetchall()

    async def fates(self) -> list[Fate]:
        """Return what became of each job."""
        async with self._conn.cursor(row_factory=class_row(Fate)) as cursor:
            return await (await cursor.execute(FATES, self._range)).fetchall()

    async def badges(self) -> list[int]:
        """Return the job that won each badge."""
        cursor = await self._conn.execute(BADGES, self._range)
        return [job_id for (job_id,) in await cursor.fetchall()]
