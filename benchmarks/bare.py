"""The limit of a drain: one connection, one claim and one delete a batch, a direct await a job, and nothing else.

What it leaves out is what a job queue is for: no session, no guard, no isolation of jobs, no retries, no recovery. It runs
on the library's own table and index, so that the rows and the write-ahead log are the same. This module does not import
the library, and is measured without it.
"""

from __future__ import annotations

import time

import msgspec
import psycopg
from psycopg.rows import tuple_row

from .counter import Counter

__all__ = ["PLANNER", "bare_drain"]

#: As the library plans its claims: left to itself the server may sort the table instead.
PLANNER = """
SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; SET plan_cache_mode = force_generic_plan
"""

_CLAIM = """
UPDATE background_jobs SET session_id = 1, claim_token = 1
WHERE id = ANY(ARRAY(
    SELECT id FROM background_jobs
    WHERE queue = 'default' AND priority = 0 AND run_at IS NULL AND session_id IS NULL AND crashes = 0
        AND position >= %(hint)s
    ORDER BY position LIMIT 500 FOR UPDATE SKIP LOCKED
))
RETURNING id, job_type, data::text, retries, position
"""
_DELETE = "DELETE FROM background_jobs WHERE id = ANY(%(ids)s::bigint[])"


async def bare_drain(dsn: str, counter: Counter) -> tuple[float, float]:
    """Run until a claim finds nothing. Returns when it began, connected, and when it ended."""
    decode = msgspec.json.Decoder(dict[str, int]).decode

    async def job(number: int) -> None:
        counter.ran(number)

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(PLANNER)
        cursor = conn.cursor(row_factory=tuple_row)
        start, hint = time.perf_counter(), 0
        while True:
            await cursor.execute(_CLAIM, {"hint": hint}, prepare=True)
            batch = await cursor.fetchall()
            if not batch:
                return start, time.perf_counter()
            for row in batch:
                await job(decode(row[2])["number"])
            hint = max([row[4] for row in batch])
            # as text, since psycopg takes ten times as long to dump a list
            ids = ",".join([str(row[0]) for row in batch])
            await cursor.execute(_DELETE, {"ids": f"{{{ids}}}"}, prepare=True)
