"""From the enqueue call to the first line of the job, with an idle worker: 300 jobs at 50 a second."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import psycopg
from psycopg.rows import tuple_row

from workers import BackgroundJob, Runner

from .bench import Options, fresh_schema
from .report import Result, Sample, summarize

__all__ = ["latency"]

RATE = 50.0
_BARE_INSERT = """
WITH job AS (
    INSERT INTO background_jobs (job_type, queue, data) VALUES ('ping', 'default', '{}') RETURNING id
) SELECT pg_notify('bare', id::text) FROM job
"""
_BARE_CLAIM = """
UPDATE background_jobs SET session_id = 1, claim_token = 1
WHERE id = ANY(ARRAY(
    SELECT id FROM background_jobs
    WHERE queue = 'default' AND priority = 0 AND run_at IS NULL AND session_id IS NULL
    ORDER BY position LIMIT 10 FOR UPDATE SKIP LOCKED
))
RETURNING id, job_type, data::text, retries
"""


class Arrivals:
    """When each job was enqueued and started. One clock: everything is in this process."""

    def __init__(self) -> None:
        self.sent: dict[int, float] = {}
        self.delays: dict[int, float] = {}
        self.twice = False

    def arrived(self, number: int) -> None:
        """The job started."""
        self.twice = self.twice or number in self.delays
        self.delays[number] = time.perf_counter() - self.sent[number]

    def sample(self) -> Sample:
        """Latencies in milliseconds; the rate is one over the median."""
        delays = sorted(self.delays.values())
        p50 = statistics.median(delays)
        return Sample(
            per_second=1 / p50,
            p50_ms=p50 * 1000,
            p99_ms=delays[int(len(delays) * 0.99)] * 1000,
            exactly_once=not self.twice and len(self.delays) == len(self.sent),
        )


class Ping(BackgroundJob[Arrivals]):
    """Notes its arrival."""

    job_name = "ping"

    number: int

    async def run(self, arrivals: Arrivals) -> None:
        arrivals.arrived(self.number)


def latency(options: Options) -> Result:
    """300 jobs at 50 a second (100 when quick), in pairs with the bare path: INSERT, NOTIFY, claim."""
    n, pairs = (100, 3) if options.quick else (300, 5)
    samples, limits = [], []
    for _ in range(pairs):
        for side, into in ((_library, samples), (_bare, limits)):
            with fresh_schema(options) as dsn, asyncio.Runner(loop_factory=options.loop_factory) as loop:
                into.append(loop.run(side(dsn, n)))
    return summarize("latency", n, samples, limits, by_latency=True)


async def _library(dsn: str, n: int) -> Sample:
    arrivals = Arrivals()
    async with (
        Runner(dsn, arrivals).register_job_type(Ping).start(),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):

        async def send(number: int) -> None:
            await Ping(number=number).enqueue(conn)

        await _produce(send, arrivals, n)
    return arrivals.sample()


async def _bare(dsn: str, n: int) -> Sample:
    arrivals = Arrivals()
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(dsn, autocommit=True) as producer,
        await connect(dsn, autocommit=True) as listener,
        await connect(dsn, autocommit=True) as claimer,
    ):
        await listener.execute("LISTEN bare")
        cursor, order = claimer.cursor(row_factory=tuple_row), iter(range(n))

        async def work() -> None:
            async for _ in listener.notifies():
                await cursor.execute(_BARE_CLAIM, prepare=True)
                for _ in await cursor.fetchall():
                    arrivals.arrived(next(order))

        async def send(number: int) -> None:
            await producer.execute(_BARE_INSERT, prepare=True)

        worker = asyncio.create_task(work())
        await _produce(send, arrivals, n)
        worker.cancel()
        await asyncio.wait([worker])
    return arrivals.sample()


async def _produce(send: Callable[[int], Awaitable[None]], arrivals: Arrivals, n: int) -> None:
    """Send at the rate, then wait for the last arrival."""
    start = time.perf_counter()
    for number in range(n):
        await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))
        arrivals.sent[number] = time.perf_counter()
        await send(number)
    deadline = time.perf_counter() + 10
    while len(arrivals.delays) < n and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
