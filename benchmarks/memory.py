"""Resident memory of a process that has drained a queue and waits for more, and what each idle worker adds to it.

The limit is a process that drained the same jobs with the bare loop: an interpreter, psycopg and msgspec.
"""

from __future__ import annotations

import statistics

from .bench import Options, fill, fresh_schema, interleave, rows
from .child import Order, Task
from .children import run_children
from .report import Result, Sample, summarize

__all__ = ["MemoryResult", "memory"]

#: An idle worker is too small to be seen alone.
_MORE_WORKERS = 1000


class MemoryResult(Result, kw_only=True, omit_defaults=True):
    """`kb_per_worker`: kB for each idle worker more."""

    kb_per_worker: float


def memory(options: Options) -> MemoryResult:
    """After 50,000 jobs (10,000 when quick). `ratio`: resident memory over that of the bare loop's process."""
    n = options.pick(full=50_000, quick=10_000, tiny=300)
    pairs = interleave(
        options.pairs, lambda: _measured(options, n, "stay"), lambda: _measured(options, n, "bare")
    )
    ratios = [(sample.rss_mb or 0) / (limit.rss_mb or 1) for sample, limit in pairs]
    per_worker = [_per_worker(options) for _ in range(options.pairs)]
    kb = round(statistics.median(per_worker), 2)
    return summarize(MemoryResult, "memory", n, pairs, ratios, kb_per_worker=kb)


def _measured(options: Options, n: int, task: Task) -> Sample:
    with fresh_schema(options) as dsn:
        fill(dsn, n)
        (finding,) = run_children([Order(task=task, dsn=dsn, n=n, uvloop=options.uvloop)])
        left = rows(dsn)
    report = finding.report
    return Sample(
        per_second=n / (report.ended - report.started),
        exactly_once=report.runs == b"\x01" * n and left == 0,
        rss_mb=finding.rss_mb,
    )


def _per_worker(options: Options) -> float:
    with fresh_schema(options) as dsn:
        few, many = run_children(
            [
                Order(task="stay", dsn=dsn, workers=10 + more, uvloop=options.uvloop)
                for more in (0, _MORE_WORKERS)
            ]
        )
    return (many.rss_mb - few.rss_mb) * 1024 / _MORE_WORKERS
