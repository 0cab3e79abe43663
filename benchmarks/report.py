"""What a benchmark returns, and how it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

__all__ = ["Result", "Sample", "line", "summarize"]


class Sample(msgspec.Struct, kw_only=True):
    """One run. `per_second` is the figure that is compared; latencies are milliseconds."""

    per_second: float
    exactly_once: bool = True
    p50_ms: float | None = None
    p99_ms: float | None = None
    wal_bytes_per_job: float | None = None
    rss_mb: float | None = None


class Result(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One benchmark: medians over its runs. `ratio` is the median of the pairs' ratios."""

    name: str
    n: int
    runs: int
    per_second: float
    min: float
    max: float
    limit_per_second: float
    ratio: float
    exactly_once: bool
    p50_ms: float | None = None
    p99_ms: float | None = None
    rss_mb: float | None = None
    wal_bytes_per_job: float | None = None
    limit_p50_ms: float | None = None


def summarize(
    name: str, n: int, samples: Sequence[Sample], limits: Sequence[Sample], *, by_latency: bool = False
) -> Result:
    """Medians of interleaved pairs of the library and the bare limit."""
    rates = [sample.per_second for sample in samples]
    pairs = list(zip(samples, limits, strict=True))
    if by_latency:
        ratios = [(sample.p50_ms or 0) / (limit.p50_ms or 1) for sample, limit in pairs]
    else:
        ratios = [sample.per_second / limit.per_second for sample, limit in pairs]
    return Result(
        name=name,
        n=n,
        runs=len(samples),
        per_second=_round(statistics.median(rates)),
        min=_round(min(rates)),
        max=_round(max(rates)),
        limit_per_second=_round(statistics.median(limit.per_second for limit in limits)),
        ratio=round(statistics.median(ratios), 3),
        exactly_once=all(sample.exactly_once for sample in samples),
        p50_ms=_median([sample.p50_ms for sample in samples]),
        p99_ms=_median([sample.p99_ms for sample in samples]),
        rss_mb=_median([sample.rss_mb for sample in samples]),
        wal_bytes_per_job=_median([sample.wal_bytes_per_job for sample in samples]),
        limit_p50_ms=_median([limit.p50_ms for limit in limits]),
    )


def line(result: Result) -> str:
    """One line for people."""
    parts = [
        f"{result.name:<10}",
        f"{result.per_second:>10,.0f}/s",
        f"({result.min:,.0f} to {result.max:,.0f})",
        f"bare {result.limit_per_second:,.0f}/s",
        f"ratio {result.ratio:.2f}",
    ]
    if result.p50_ms is not None:
        parts.append(f"p50 {result.p50_ms:.2f} ms  p99 {result.p99_ms or 0:.2f} ms")
    if result.wal_bytes_per_job is not None:
        parts.append(f"WAL {result.wal_bytes_per_job:.0f} B/job")
    parts.append("each job once" if result.exactly_once else "NOT EXACTLY ONCE")
    return "  ".join(parts)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None


def _round(value: float) -> float:
    return round(value, 1)
