"""What a job costs in Python: where the processor time of a drain goes, and what telemetry takes when nobody listens."""

from __future__ import annotations

import asyncio
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
from .sampler import Profile, sampled

__all__ = ["CostResult", "TelemetryResult", "python_time", "telemetry_cost"]

#: Whose code it is; a package counts as the library's if it is there for the library's structure.
_OWNERS = {
    "library": [workers, anyio],
    "driver": [psycopg, psycopg_pool],
    "loop": [asyncio],
    "job": [benchmarks],
}


class CostResult(Result, kw_only=True, omit_defaults=True):
    """Microseconds a job, by whose code it is. `loop` is asyncio's own, `job` the no-op and what counts it."""

    library_us: float
    driver_us: float
    loop_us: float
    job_us: float
    bare_us: float
    hottest: dict[str, float]


class TelemetryResult(Result, kw_only=True, omit_defaults=True):
    """`us_per_job`: all that is done for telemetry and context hooks around a job; `calls_per_job`: how often it asks."""

    us_per_job: float
    calls_per_job: float


def python_time(options: Options) -> CostResult:
    """Of 100,000 jobs (20,000 when quick). `per_second`: jobs a second of the loop thread's processor time, both sides.

    On asyncio, whatever the others run on: of uvloop a sample can't tell working from waiting.
    """
    options = msgspec.structs.replace(options, uvloop=False)
    n = options.pick(full=100_000, quick=20_000, tiny=500)
    profiles: list[Profile] = []

    def measured(side: Side) -> Sample:
        with fresh_schema(options) as dsn:
            fill(dsn, n)
            with sampled(_OWNERS) as profile:
                sample = drained(options, dsn, Counter(n), side)
        if side is library_drain:
            profiles.append(profile)
        return Sample(per_second=n / profile.seconds, exactly_once=sample.exactly_once)

    pairs = interleave(options.pairs, lambda: measured(library_drain), lambda: measured(bare_drain))
    middle = sorted(profiles, key=lambda profile: profile.seconds)[len(profiles) // 2]
    times = middle.microseconds(n)
    return summarize(
        CostResult,
        "python_time",
        n,
        pairs,
        **{f"{owner}_us": times.get(owner, 0.0) for owner in _OWNERS},
        bare_us=round(1e6 / sorted(limit.per_second for _, limit in pairs)[len(pairs) // 2], 2),
        hottest=middle.hottest(n),
    )


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
    result = summarize(
        TelemetryResult, "telemetry", n, pairs, us_per_job=0.0, calls_per_job=round(max(calls), 2)
    )
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
