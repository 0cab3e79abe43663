"""Jobs flow while somebody's transaction stays open and idle, as a forgotten psql or a long report does.

Its snapshot keeps vacuum from removing anything: a million jobs leave a million dead rows and dead index entries, and a
claim that began its scan at the start would walk them all. The clean run is the same without that transaction. `ratio` is
the rate over the last tenth, to the clean run's over its last tenth. Then, with the transaction still open and jobs still
flowing, some jobs become available behind the place where claims begin; see late.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import msgspec
import psycopg

from .bench import Options, fill, fresh_schema, interleave
from .counter import Counter, Marks
from .drain import drained, library_drain
from .late import PickUps, pick_ups
from .report import Point, Result, Sample, median, summarize

__all__ = ["PinnedResult", "pinned"]

_TENTHS = 10


class PinnedResult(Result, kw_only=True, omit_defaults=True):
    """`per_second` is the last tenth's; `points` has every tenth. Then seconds from commit to start; see late.PickUps."""

    whole_per_second: float
    late_notified_s: float
    late_within_3s_s: float
    late_beyond_s: float
    late_over_budget_s: float
    full_scan_s: float
    retried_s: float


class _Flow(msgspec.Struct):
    """One drain: as a whole, and by tenths."""

    whole: Sample
    tenths: list[float]

    @property
    def last(self) -> Sample:
        return msgspec.structs.replace(self.whole, per_second=self.tenths[-1])


def pinned(options: Options) -> PinnedResult:
    """1,000,000 jobs (20,000 when quick)."""
    n = options.pick(full=1_000_000, quick=20_000, tiny=1_000)
    flows: dict[bool, list[_Flow]] = {True: [], False: []}

    def measured(pin: bool) -> Sample:
        with fresh_schema(options) as dsn:
            flows[pin].append(_flow(options, dsn, n, pin))
        return flows[pin][-1].last

    pairs = interleave(
        options.pick(full=5, quick=2, tiny=1), lambda: measured(True), lambda: measured(False)
    )
    late = _late(options, n)
    result = summarize(
        PinnedResult,
        "pinned",
        n,
        pairs,
        whole_per_second=median([flow.whole for flow in flows[True]], "per_second"),
        points=_points(n, flows),
        **late.fields(),
    )
    result.exactly_once = result.exactly_once and late.exactly_once
    return result


def _flow(options: Options, dsn: str, n: int, pin: bool) -> _Flow:
    fill(dsn, n)
    marks = Marks(n, n // _TENTHS)
    with held_snapshot(dsn) if pin else nullcontext():
        whole = drained(options, dsn, marks, library_drain)
    return _Flow(whole, marks.rates())


def _late(options: Options, n: int) -> PickUps:
    with fresh_schema(options) as dsn:
        fill(dsn, n)
        with held_snapshot(dsn):
            before = drained(options, dsn, Counter(n), library_drain)
            late = pick_ups(options, dsn)
    late.exactly_once = late.exactly_once and before.exactly_once
    return late


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """A transaction that holds the oldest snapshot, and does nothing."""
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT count(*) FROM worker_sessions")
        yield


def _points(n: int, flows: dict[bool, list[_Flow]]) -> list[Point]:
    points = []
    for tenth in range(_TENTHS):
        both = [
            median(
                [Sample(per_second=flow.tenths[tenth], exactly_once=True) for flow in flows[pin]],
                "per_second",
            )
            for pin in (True, False)
        ]
        points.append(Point((tenth + 1) * n // _TENTHS, both[0] or 0.0, both[1] or 0.0))
    return points
