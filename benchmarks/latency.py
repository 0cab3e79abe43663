"""From the enqueue call to the first line of the job, with idle workers: 300 jobs at 50 a second.

The limit is the bare path through the same server: INSERT with NOTIFY on one connection, a second one that listens, and a
third one that claims. Producer and consumer share one process and one event loop, and so one clock, on both sides.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import psycopg
from psycopg.rows import tuple_row

from workers import BackgroundJob, Runner

from .bare import PLANNER
from .bench import Options, fresh_schema, interleave, rows, run
from .report import Result, Sample, summarize
from .waiting import until

__all__ = ["WARM_UP", "Arrivals", "bare_latency", "latency", "library_latency"]

RATE = 50.0
#: Not counted: until the statements of both sides are prepared.
WARM_UP = 10
_BARE_INSERT = """
INSERT INTO background_jobs (job_type, queue, data)
VALUES ('ping', 'default', jsonb_build_object('number', %(number)s::int)) RETURNING pg_notify('bare', id::text)
"""
_BARE_CLAIM = """
UPDATE background_jobs SET session_id = 1, claim_token = 1
WHERE id = ANY(ARRAY(
    SELECT id FROM background_jobs
    WHERE queue = 'default' AND priority = 0 AND run_at IS NULL AND session_id IS NULL AND crashes = 0
        AND position >= %(hint)s
    ORDER BY position LIMIT 10 FOR UPDATE SKIP LOCKED
))
RETURNING (data->>'number')::int, position
"""


class Arrivals:
    """When each job was enqueued, and how long it took to start."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._delays: dict[int, float] = {}
        self._twice = False

    async def produce(self, send: Callable[[int], Awaitable[None]], n: int) -> None:
        """Send `n` jobs at RATE, after the warm-up, and wait for the last one; what is overdue is not sent in a burst."""
        start = time.perf_counter()
        for number in range(n + WARM_UP):
            await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))
            self.sends(number)
            await send(number)
        await until(lambda: len(self._delays) == len(self._sent), 5)

    def sends(self, number: int) -> None:
        """The job is about to be enqueued."""
        self._sent[number] = time.perf_counter()

    def arrived(self, number: int) -> None:
        """The job started."""
        self._twice = self._twice or number in self._delays
        self._delays[number] = time.perf_counter() - self._sent[number]

    def sample(self) -> Sample:
        """The rate is one over the median delay."""
        delays = sorted(delay for number, delay in self._delays.items() if number >= WARM_UP)
        p50 = statistics.median(delays)
        return Sample(
            per_second=1 / p50,
            p50_ms=p50 * 1000,
            p99_ms=delays[int(len(delays) * 0.99)] * 1000,
            exactly_once=not self._twice and len(self._delays) == len(self._sent),
        )


class Ping(BackgroundJob[Arrivals]):
    """Notes its arrival."""

    job_name = "ping"

    number: int

    async def run(self, arrivals: Arrivals) -> None:
        arrivals.arrived(self.number)


def latency(options: Options) -> Result:
    """300 jobs at 50 a second (60 when quick). `ratio`: p50 over the bare path's."""
    n = options.pick(full=300, quick=60, tiny=10)

    def library() -> Sample:
        with fresh_schema(options) as dsn:
            return run(options, library_latency(dsn, n))

    def bare() -> Sample:
        with fresh_schema(options) as dsn:
            return run(options, bare_latency(dsn, n))

    pairs = interleave(options.pairs, library, bare)
    ratios = [(sample.p50_ms or 0) / (limit.p50_ms or 1) for sample, limit in pairs]
    return summarize(Result, "latency", n, pairs, ratios)


async def library_latency(dsn: str, n: int, arrivals: Arrivals | None = None) -> Sample:
    """Enqueue `n` jobs, and let a runner with default settings run them."""
    arrivals = arrivals or Arrivals()
    async with (
        Runner(dsn, arrivals).register_job_type(Ping).start(),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):

        async def send(number: int) -> None:
            await Ping(number=number).enqueue(conn)

        await arrivals.produce(send, n)
    sample = arrivals.sample()
    sample.exactly_once = sample.exactly_once and rows(dsn) == 0
    return sample


async def bare_latency(
    dsn: str,
    n: int,
    arrivals: Arrivals | None = None,
    note: Callable[[str], None] = lambda stage: None,
) -> Sample:
    """The same without the library. `note` is told when a notification is here, a claim is sent and has come."""
    arrivals = arrivals or Arrivals()
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(dsn, autocommit=True) as producer,
        await connect(dsn, autocommit=True) as listener,
        await connect(dsn, autocommit=True) as claimer,
    ):
        await listener.execute("LISTEN bare")
        await claimer.execute(PLANNER)
        cursor = claimer.cursor(row_factory=tuple_row)

        async def work() -> None:
            hint = 0
            async for _ in listener.notifies():
                note("notified")
                note("claiming")
                await cursor.execute(_BARE_CLAIM, {"hint": hint}, prepare=True)
                rows = await cursor.fetchall()
                note("claimed")
                for number, position in rows:
                    arrivals.arrived(number)
                    hint = position

        async def send(number: int) -> None:
            await producer.execute(_BARE_INSERT, {"number": number}, prepare=True)

        worker = asyncio.create_task(work())
        await arrivals.produce(send, n)
        worker.cancel()
        await asyncio.wait([worker])
    return arrivals.sample()
