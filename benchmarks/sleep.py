"""Many workers on jobs that wait: whether the workers are kept busy.

The ideal is as many bare tasks on the same event loop that sleep as often and as long. From the first start of a job to the
last end of one, on both sides.
"""

from __future__ import annotations

import asyncio

from workers import Runner

from .bench import Options, fill, fresh_schema, interleave, rows
from .counter import Naps
from .jobs import Nap
from .report import Pair, Result, Sample, summarize

__all__ = ["sleep", "sleep_1000"]


def sleep(options: Options) -> Result:
    """100 workers on jobs that sleep 10 ms: 50,000 of them (10,000 when quick)."""
    n = options.pick(full=50_000, quick=10_000, tiny=200)
    return summarize(Result, "sleep", n, _pairs(options, n, 100, 0.01))


def sleep_1000(options: Options) -> Result:
    """1,000 workers on jobs that sleep 100 ms: 50,000 of them (10,000 when quick)."""
    n = options.pick(full=50_000, quick=10_000, tiny=200)
    return summarize(Result, "sleep_1000", n, _pairs(options, n, 1000, 0.1))


def _pairs(options: Options, n: int, workers: int, seconds: float) -> list[Pair]:
    with asyncio.Runner(loop_factory=options.loop_factory) as loop:

        def library() -> Sample:
            naps = Naps(n, seconds)
            with fresh_schema(options) as dsn:
                fill(dsn, n, job_type="nap")
                loop.run(_library(dsn, naps, workers))
                return _sample(naps, left=rows(dsn))

        def ideal() -> Sample:
            naps = Naps(n, seconds)
            loop.run(_ideal(naps, workers))
            return _sample(naps, left=0)

        return interleave(options.pairs, library, ideal)


async def _library(dsn: str, naps: Naps, workers: int) -> None:
    runner = Runner(dsn, naps).register_job_type(Nap).shutdown_when_queue_empty()
    runner.configure_default_queue(num_workers=workers)
    await runner.start().wait_for_shutdown()


async def _ideal(naps: Naps, workers: int) -> None:
    numbers = iter(range(len(naps.runs)))

    async def work() -> None:
        for number in numbers:
            naps.begins()
            await asyncio.sleep(naps.seconds)
            naps.ran(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())


def _sample(naps: Naps, left: int) -> Sample:
    return Sample(
        per_second=len(naps.runs) / (naps.last - naps.first),
        exactly_once=naps.exactly_once and left == 0,
    )
