"""What a slow disk costs, and what could be saved: every flush of the log takes 2 ms, as on a networked disk.

The server itself waits so long before a flush (`commit_delay`, with `commit_siblings = 0`). Two ideas are weighed, which the
library does not follow; docs/performance.md says why. `flush_claims`: claims alone are committed without waiting for the
disk. `flush_enqueue`: what many tasks enqueue at the same time is gathered into one statement.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from psycopg_pool import AsyncConnectionPool

from workers.storage.postgres.claim_link import CLAIM_PLANNER

from .bench import Options, fill, fresh_schema, interleave, rows, run
from .counter import Counter
from .drain import drained, library_drain
from .jobs import Noop
from .latency import library_latency
from .report import Pair, Point, Result, Sample, median, summarize

__all__ = ["ClaimsResult", "EnqueueResult", "flush_claims", "flush_enqueue"]

_SLOW = "-ccommit_delay=2000 -ccommit_siblings=0"
#: Tasks that enqueue at the same time; the pool has ten connections.
_TASKS = [1, 10, 100]
_CONNECTIONS = 10


class ClaimsResult(Result, kw_only=True, omit_defaults=True):
    """`ratio` and the p50s: from the enqueue call to the start of the job, without and with the wait. `drain_ratio`: the
    rate of a drain without, to that with the wait."""

    drain_ratio: float


def flush_claims(options: Options) -> ClaimsResult:
    """300 jobs at 50 a second (60 when quick), and a drain of 50,000 (10,000)."""
    n = options.pick(full=300, quick=60, tiny=10)
    jobs = options.pick(full=50_000, quick=10_000, tiny=300)

    def latency(asynchronous: bool) -> Sample:
        with _slow_schema(options) as dsn, _claims(asynchronous):
            return run(options, library_latency(dsn, n))

    def drain(asynchronous: bool) -> Sample:
        with _slow_schema(options) as dsn, _claims(asynchronous):
            fill(dsn, jobs)
            return drained(options, dsn, Counter(jobs), library_drain)

    pairs = interleave(options.pairs, lambda: latency(True), lambda: latency(False))
    drains = interleave(options.pairs, lambda: drain(True), lambda: drain(False))
    ratios = [(sample.p50_ms or 0) / (limit.p50_ms or 1) for sample, limit in pairs]
    drained_by = summarize(Result, "", jobs, drains)
    result = summarize(ClaimsResult, "flush_claims", n, pairs, ratios, drain_ratio=drained_by.ratio)
    result.exactly_once = result.exactly_once and drained_by.exactly_once
    return result


class EnqueueResult(Result, kw_only=True, omit_defaults=True):
    """`quiet_per_second`: each on its own, with notifications off: NOTIFY takes a lock for the time of the flush."""

    quiet_per_second: float


def flush_enqueue(options: Options) -> EnqueueResult:
    """2,000 jobs (400 when quick), one by one, from 100 tasks on a pool of ten connections, in pairs with one statement for
    what has gathered while the one before was on its way. `points`: from 1, 10 and 100 tasks."""
    n = options.pick(full=2_000, quick=400, tiny=100)

    def measured(tasks: int, gathered: bool, settings: str = "") -> Sample:
        with _slow_schema(options, settings) as dsn:
            seconds = run(options, _enqueue(dsn, n, tasks, gathered=gathered))
            return Sample(per_second=n / seconds, exactly_once=rows(dsn) == n)

    def pairs(tasks: int) -> list[Pair]:
        return interleave(
            options.pairs, lambda: measured(tasks, True), lambda: measured(tasks, False)
        )

    quiet = [measured(_TASKS[-1], False, "-cworkers.notify=off") for _ in range(options.pairs)]
    by_tasks = {tasks: pairs(tasks) for tasks in _TASKS}
    points = [
        Point(
            tasks,
            median([pair[0] for pair in each], "per_second") or 0.0,
            median([pair[1] for pair in each], "per_second") or 0.0,
        )
        for tasks, each in by_tasks.items()
    ]
    return summarize(
        EnqueueResult,
        "flush_enqueue",
        n,
        by_tasks[_TASKS[-1]],
        points=points,
        quiet_per_second=median(quiet, "per_second"),
    )


@contextmanager
def _slow_schema(options: Options, settings: str = "") -> Iterator[str]:
    with fresh_schema(options, settings=f"{_SLOW} {settings}") as dsn:
        yield dsn


@contextmanager
def _claims(asynchronous: bool) -> Iterator[None]:
    if not asynchronous:
        yield
        return
    CLAIM_PLANNER["synchronous_commit"] = "off"
    try:
        yield
    finally:
        del CLAIM_PLANNER["synchronous_commit"]


class _Gathering:
    """Enqueues together what comes while the statement before is on its way."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._waiting: list[tuple[Noop, asyncio.Future[int | None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def enqueue(self, job: Noop) -> int | None:
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            ids = await Noop.enqueue_batch(self._pool, [job for job, _ in batch])
            for (_, future), job_id in zip(batch, ids, strict=True):
                future.set_result(job_id)
        self._writer = None


async def _enqueue(dsn: str, n: int, tasks: int, *, gathered: bool) -> float:
    async with AsyncConnectionPool(
        dsn, kwargs={"autocommit": True}, min_size=_CONNECTIONS, max_size=_CONNECTIONS
    ) as pool:
        await pool.wait()
        gathering, numbers = _Gathering(pool), iter(range(n))
        enqueue: Callable[[Noop], Awaitable[int | None]] = (
            gathering.enqueue if gathered else lambda job: job.enqueue(pool)
        )

        async def produce() -> None:
            for number in numbers:
                await enqueue(Noop(number=number))

        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(produce())
        return time.perf_counter() - start
