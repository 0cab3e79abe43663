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

__all__ = ["bare_drain"]

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
_DELETE = "DELETE FROM background_jobs WHERE id = ANY(%(ids)s)"


async def bare_drain(dsn: str, counter: Counter) -> tuple[float, float]:
    """Run until a claim finds nothing. Returns when it began, connected, and when it ended."""
    decode = msgspec.json.Decoder(dict[str, int]).decode

    async def job(number: int) -> None:
        counter.ran(number)

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = conn.cursor(row_factory=tuple_row)
        start, hint = time.perf_counter(), 0
        while True:
            await cursor.execute(_CLAIM, {"hint": hint}, prepare=True)
            batch = await cursor.fetchall()
            if not batch:
                return start, time.perf_counter()
            ids = []
            for job_id, _, data, _, position in batch:
                await job(decode(data)["number"])
                ids.append(job_id)
                hint = max(hint, position)
            await cursor.execute(_DELETE, {"ids": ids}, prepare=True)
