"""What a benchmark returns, and how it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

__all__ = ["HEADER", "Pair", "Point", "Result", "Sample", "line", "median", "summarize"]


class Sample(msgspec.Struct, kw_only=True):
    """One run of one side. Latencies are milliseconds."""

    per_second: float
    exactly_once: bool
    p50_ms: float | None = None
    p99_ms: float | None = None
    rss_mb: float | None = None
    wal_bytes_per_job: float | None = None


#: The library's run and the limit's.
Pair = tuple[Sample, Sample]


class Point(msgspec.Struct):
    """A point of a scaling curve: the figure at `x`, and what it is compared with."""

    x: float
    value: float
    reference: float


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
    limit_p99_ms: float | None = None
    limit_rss_mb: float | None = None
    limit_wal_bytes_per_job: float | None = None
    points: list[Point] = []


R = TypeVar("R", bound=Result)
#: Printed in columns of their own, or not at all.
_COLUMNS = {
    *("name", "n", "runs", "per_second", "min", "max", "limit_per_second", "ratio"),
    "exactly_once",
    "points",
}
HEADER = (
    f"{'benchmark':<14}{'per second':>12}  {'(min to max)':<20}{'limit':>12}{'ratio':>8}  all else"
)


def summarize(
    kind: type[R],
    name: str,
    n: int,
    pairs: Sequence[Pair],
    ratios: Sequence[float] = (),
    /,
    **more: Any,
) -> R:
    """Medians of interleaved pairs. `ratios`: one of each pair; without them those of the rates. `more`: further fields."""
    samples = [sample for sample, _ in pairs]
    limits = [limit for _, limit in pairs]
    rates = [sample.per_second for sample in samples]
    ratios = ratios or [sample.per_second / limit.per_second for sample, limit in pairs]
    return kind(
        name=name,
        n=n,
        runs=len(pairs),
        per_second=_rounded(statistics.median(rates)),
        min=_rounded(min(rates)),
        max=_rounded(max(rates)),
        limit_per_second=_rounded(statistics.median(limit.per_second for limit in limits)),
        ratio=round(statistics.median(ratios), 3),
        # a limit that lost a job would be no limit
        exactly_once=all(sample.exactly_once for pair in pairs for sample in pair),
        p50_ms=median(samples, "p50_ms"),
        p99_ms=median(samples, "p99_ms"),
        rss_mb=median(samples, "rss_mb"),
        wal_bytes_per_job=median(samples, "wal_bytes_per_job"),
        limit_p50_ms=median(limits, "p50_ms"),
        limit_p99_ms=median(limits, "p99_ms"),
        limit_rss_mb=median(limits, "rss_mb"),
        limit_wal_bytes_per_job=median(limits, "wal_bytes_per_job"),
        **more,
    )


def median(samples: Sequence[Sample], field: str) -> float | None:
    """The median of a field; None where it was not measured."""
    known = [value for sample in samples if (value := getattr(sample, field)) is not None]
    return round(statistics.median(known), 3) if known else None


def line(result: Result) -> str:
    """One line for people: the columns, and whatever else was measured."""
    spread = f"({_shown(result.min)} to {_shown(result.max)})"
    columns = (
        f"{result.name:<14}{_shown(result.per_second):>12}  {spread:<20}"
        f"{_shown(result.limit_per_second):>12}{result.ratio:>8.3f}"
    )
    others = [
        f"{field} {value:g}"
        for field in result.__struct_fields__
        if field not in _COLUMNS and isinstance(value := getattr(result, field), int | float)
    ]
    once = "each job once" if result.exactly_once else "NOT EXACTLY ONCE"
    return "  ".join([columns, ", ".join([*others, once])])


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _rounded(rate: float) -> float:
    """As many digits as mean something: some benchmarks count tens of thousands a second, one counts three."""
    return round(rate, 1 if rate >= 100 else 3)
