"""What a job costs in Python: where the processor time of a drain goes, and what telemetry takes when nobody listens."""

from __future__ import annotations

import asyncio
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any
from unittest import mock

import anyio
import msgspec
import psycopg
import psycopg_pool

import benchmarks
import workers
from workers import telemetry
from workers.job import ClaimedJob

from .bare import bare_drain
from .bench import Options, fill, fresh_schema, interleave
from .counter import Counter
from .drain import Side, drained, library_drain
from .report import Pair, Result, Sample, summarize
from .sampler import sampled

__all__ = ["CostResult", "TelemetryResult", "python_time", "telemetry_cost"]

#: Whose code it is; a package counts as the library's if it is there for the library's structure.
_OWNERS = {
    "library": [workers, anyio],
    "driver": [psycopg, psycopg_pool],
    "loop": [asyncio],
    "job": [benchmarks],
}


class CostResult(Result, kw_only=True):
    """Microseconds a job, by whose code it is. `loop` is asyncio's own, `job` the no-op and what counts it."""

    library_us: float = 0.0
    driver_us: float = 0.0
    loop_us: float = 0.0
    job_us: float = 0.0
    bare_us: float = 0.0
    hottest: dict[str, float] = msgspec.field(default_factory=dict)


class TelemetryResult(Result, kw_only=True):
    """`us_per_job`: all that is done for telemetry and context hooks around a job; `calls_per_job`: how often it asks."""

    us_per_job: float = 0.0
    calls_per_job: float = 0.0


def python_time(options: Options) -> CostResult:
    """Of 100,000 jobs (20,000 when quick). `per_second`: jobs a second of the loop thread's processor time, both sides.

    On asyncio, whatever the others run on: of uvloop a sample can't tell working from waiting.
    """
    options = msgspec.structs.replace(options, uvloop=False)
    n = options.pick(full=100_000, quick=20_000, tiny=2_000)

    def measured(side: Side) -> Sample:
        with fresh_schema(options) as dsn:
            fill(dsn, n)
            start = time.thread_time()
            sample = drained(options, dsn, Counter(n), side)
            seconds = time.thread_time() - start
        return Sample(per_second=n / seconds, exactly_once=sample.exactly_once)

    pairs = interleave(options.pairs, lambda: measured(library_drain), lambda: measured(bare_drain))
    # the samples cost time themselves, so they say how a job's time is divided, not how long it is
    with sampled(_OWNERS) as profile:
        measured(library_drain)
    result = summarize(CostResult, "python_time", n, pairs)
    us, shares = 1e6 / result.per_second, profile.owners()
    result.library_us, result.driver_us, result.loop_us, result.job_us = (
        round(us * shares.get(owner, 0.0), 2) for owner in _OWNERS
    )
    result.bare_us = round(1e6 / result.limit_per_second, 2)
    result.hottest = {name: round(us * share, 2) for name, share in profile.hottest().items()}
    return result


def telemetry_cost(options: Options) -> TelemetryResult:
    """The calls of one job, counted in a drain, times what a call takes with no subscriber; the limit is 2 us."""
    n = options.pick(full=10_000, quick=5_000, tiny=300)
    job = ClaimedJob(1, "noop", "default", 0, "{}", 0, 0, False, 1)
    pairs: list[Pair] = []
    calls = []
    for _ in range(options.pairs):
        with fresh_schema(options) as dsn, _counted() as counted:
            fill(dsn, n)
            sample = drained(options, dsn, Counter(n), library_drain)
        microseconds = (
            counted["wanted"] / n * _time(lambda: telemetry.wanted(telemetry.JobFinished))
        )
        for hook in telemetry.job_context_hooks:
            microseconds += counted["hook"] / n * _time(partial(copy_context().run, hook, job))
        calls.append((counted["wanted"] + counted["hook"]) / n)
        budget = Sample(per_second=1e6 / 2, exactly_once=True)
        pairs.append(
            (Sample(per_second=1e6 / microseconds, exactly_once=sample.exactly_once), budget)
        )
    result = summarize(TelemetryResult, "telemetry", n, pairs, calls_per_job=round(max(calls), 2))
    result.us_per_job = round(1e6 / result.per_second, 3)
    return result


def _time(call: Callable[[], object]) -> float:
    """Microseconds; the best of some, as nothing makes a call faster than it is."""
    number = 20_000
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


@contextmanager
def _counted() -> Iterator[dict[str, int]]:
    """Count how often the runtime asks whether an event is wanted, and enters a job's context."""
    counted = {"wanted": 0, "hook": 0}
    wanted = telemetry.wanted

    def count_wanted(kind: type[Any]) -> bool:
        counted["wanted"] += 1
        return wanted(kind)

    def count_hook(job: ClaimedJob) -> None:
        counted["hook"] += 1

    hooks = [*telemetry.job_context_hooks, count_hook]
    with (
        mock.patch.object(telemetry, "wanted", count_wanted),
        mock.patch.object(telemetry, "job_context_hooks", hooks),
    ):
        yield counted
