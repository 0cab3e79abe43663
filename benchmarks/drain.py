"""Empty a queue of no-op jobs in one process.

From the moment that the runner is ready to the moment that it has ended: every outcome is written and the session closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from workers import Runner

from .bare import bare_drain
from .bench import Options, fill, fresh_schema, interleave, rows, run, wal
from .counter import Counter
from .jobs import Noop
from .report import Result, Sample, summarize

__all__ = ["drain", "drain_best", "drained", "library_drain", "watched_drain"]

T = TypeVar("T")
#: Takes a DSN and a counter; returns when it began and when it ended.
Side = Callable[[str, Counter], Coroutine[Any, Any, tuple[float, float]]]


def drain(options: Options) -> Result:
    """50,000 jobs (10,000 when quick), default settings."""
    return _pairs("drain", options)


def drain_best(options: Options) -> Result:
    """The same on uvloop, where other settings gain nothing; so is the bare loop."""
    return _pairs("drain_best", msgspec.structs.replace(options, uvloop=True))


def _pairs(name: str, options: Options) -> Result:
    n = options.pick(full=50_000, quick=10_000, tiny=300)

    def measured(side: Side) -> Sample:
        with fresh_schema(options) as dsn:
            fill(dsn, n)
            return drained(options, dsn, Counter(n), side)

    # a run takes a second, within which the machine changes its speed
    count = options.pick(full=15, quick=3, tiny=1)
    pairs = interleave(count, lambda: measured(library_drain), lambda: measured(bare_drain))
    return summarize(Result, name, n, pairs)


def drained(options: Options, dsn: str, counter: Counter, side: Side, *, leaves: int = 0) -> Sample:
    """Drain what is there. Exactly once: each job ran once, and all rows are gone but the `leaves` that are not due."""
    n = len(counter.runs)
    with wal(dsn) as written:
        start, end = run(options, side(dsn, counter))
    return Sample(
        per_second=n / (end - start),
        exactly_once=counter.exactly_once and rows(dsn) == leaves,
        wal_bytes_per_job=written[0] / n,
    )


async def library_drain(dsn: str, counter: Counter) -> tuple[float, float]:
    """Drain with a Runner. Returns when it was ready and when it had ended."""
    return await watched_drain(dsn, counter, time.perf_counter)


async def watched_drain(dsn: str, counter: Counter, look: Callable[[], T]) -> tuple[T, T]:
    """Drain with a Runner. Returns what `look` saw when it was ready and when it had ended."""
    runner = Runner(dsn, counter).register_job_type(Noop).shutdown_when_queue_empty()
    handle = runner.start()
    await handle.ready()
    start = look()
    await handle.wait_for_shutdown()
    return start, look()
