"""Whether jobs that are scheduled for later stand in the way of those that are due: they have a higher priority.

Two schemas: one with nothing but today's jobs, one with more and more that are scheduled for tomorrow. Today's are
drained in both, in turns.
"""

from __future__ import annotations

from .bench import Options, fill, fresh_schema, interleave
from .counter import Counter
from .drain import drained, library_drain
from .report import Pair, Point, Result, Sample, median, summarize

__all__ = ["scheduled"]


def scheduled(options: Options) -> Result:
    """Up to 1,000,000 scheduled (100,000 when quick), 50,000 due (10,000). `ratio`: to the drain without them."""
    sizes = options.pick(
        full=(10_000, 100_000, 1_000_000), quick=(10_000, 100_000), tiny=(300, 1_000)
    )
    n = options.pick(full=50_000, quick=10_000, tiny=300)
    points: list[Point] = []
    pairs: list[Pair] = []
    exactly_once = True
    with fresh_schema(options) as plain, fresh_schema(options) as burdened:
        waiting = 0
        for size in sizes:
            _schedule(burdened, size - waiting)
            waiting = size
            last = size == sizes[-1]
            pairs = _pairs(options, plain, burdened, n, size, options.pairs if last else 1)
            exactly_once = exactly_once and all(
                each.exactly_once for pair in pairs for each in pair
            )
            with_them, without = (
                median(side, "per_second") or 0.0 for side in zip(*pairs, strict=True)
            )
            points.append(Point(size, with_them, without))
    result = summarize(Result, "scheduled", n, pairs, points=points)
    result.exactly_once = exactly_once
    return result


def _schedule(dsn: str, n: int) -> None:
    fill(dsn, n, columns="run_at, priority", values="now() + interval '1 day', 10")


def _pairs(
    options: Options, plain: str, burdened: str, n: int, waiting: int, pairs: int
) -> list[Pair]:
    def measured(dsn: str, leaves: int) -> Sample:
        fill(dsn, n)
        return drained(options, dsn, Counter(n), library_drain, leaves=leaves)

    return interleave(pairs, lambda: measured(burdened, waiting), lambda: measured(plain, 0))
