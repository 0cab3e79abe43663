"""Empty a queue of no-op jobs: one process, default settings."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import psycopg
from psycopg.rows import tuple_row

from workers import Runner

from .bench import Counter, Noop, Options, fill, fresh_schema, wal
from .report import Result, Sample, summarize

__all__ = ["drain"]

#: The least that a claim can be: one UPDATE over the library's own table and index, and nothing else written.
BARE_CLAIM = """
UPDATE background_jobs SET session_id = 1, claim_token = 1
WHERE id = ANY(ARRAY(
    SELECT id FROM background_jobs
    WHERE queue = 'default' AND priority = 0 AND run_at IS NULL AND session_id IS NULL AND position >= %(hint)s
    ORDER BY position LIMIT 500 FOR UPDATE SKIP LOCKED
))
RETURNING id, job_type, data::text, retries, position
"""
BARE_DELETE = "DELETE FROM background_jobs WHERE id = ANY(%(ids)s)"


def drain(options: Options) -> Result:
    """Drain 50,000 jobs (10,000 when quick), in pairs with the bare loop."""
    n, pairs = (10_000, 3) if options.quick else (50_000, 5)
    samples, limits = [], []
    for _ in range(pairs):
        samples.append(_run(options, n, _library))
        limits.append(_run(options, n, _bare))
    return summarize("drain", n, samples, limits)


def _run(options: Options, n: int, side: Any) -> Sample:
    with fresh_schema(options) as dsn:
        fill(dsn, n)
        counter = Counter(n)
        with wal(dsn) as written, asyncio.Runner(loop_factory=options.loop_factory) as loop:
            seconds = loop.run(side(dsn, counter))
        return Sample(
            per_second=n / seconds, exactly_once=counter.exactly_once, wal_bytes_per_job=written[0] / n
        )


async def _library(dsn: str, counter: Counter) -> float:
    """From ready to ended: the last completion is written, the session closed."""
    runner = Runner(dsn, counter).register_job_type(Noop).shutdown_when_queue_empty()
    handle = runner.start()
    await handle.ready()
    start = time.perf_counter()
    await handle.wait_for_shutdown()
    return time.perf_counter() - start


async def _bare(dsn: str, counter: Counter) -> float:
    decoder = msgspec.json.Decoder(dict[str, int])

    async def job(number: int) -> None:
        counter.runs[number] += 1

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = conn.cursor(row_factory=tuple_row)
        start, hint = time.perf_counter(), 0
        while True:
            await cursor.execute(BARE_CLAIM, {"hint": hint}, prepare=True)
            rows = await cursor.fetchall()
            if not rows:
                return time.perf_counter() - start
            ids = []
            for job_id, _, data, _, position in rows:
                await job(decoder.decode(data)["number"])
                ids.append(job_id)
                hint = max(hint, position)
            await cursor.execute(BARE_DELETE, {"ids": ids}, prepare=True)
