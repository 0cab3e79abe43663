"""Jobs flow while somebody's transaction stays open and idle, as a forgotten psql or a long report does.

Its snapshot keeps vacuum from removing anything: a million jobs leave a million dead rows and dead index entries, and a
claim that began its scan at the start would walk them all. The clean run is the same without that transaction, in another
database, and in turns: a hundredth of the jobs here, a hundredth there, as a machine changes its speed within seconds. Each
is timed from the start of its first job to that of its last. `ratio` is the rate over the last tenth, to the clean run's
over its last tenth. How long the first job of a slice waited is told apart (`first_start_s`): in turns a runner has nothing
to do half of the time, and may be amid a look at the whole queue, which it takes 2% of its time for. Once as many jobs are
drained without a break, too (`drained_per_second`). Then, with the transaction still open and jobs still flowing, some jobs
become available behind the place where claims begin; see late.py.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg

from workers import Runner

from .bench import Options, fill, fresh_database, fresh_schema, rows, run
from .counter import Counter, Slices
from .drain import drained, library_drain
from .jobs import Noop
from .late import PickUps, pick_ups
from .report import Pair, Point, Result, Sample, summarize

__all__ = ["PinnedResult", "pinned"]

_TENTHS, _SLICES = 10, 100


class PinnedResult(Result, kw_only=True, omit_defaults=True):
    """`per_second` is the last tenth's; `points` has every tenth; `whole_*`, of all of them. Then seconds from commit to
    start: of the first job of each slice in the last tenth, the median run's longest; and see late.PickUps."""

    whole_per_second: float
    whole_ratio: float
    drained_per_second: float
    first_start_s: float
    late_notified_s: float
    late_within_3s_s: float
    late_beyond_s: float
    late_over_budget_s: float
    full_scan_s: float
    retried_s: float


def pinned(options: Options) -> PinnedResult:
    """1,000,000 jobs (20,000 when quick)."""
    n = options.pick(full=1_000_000, quick=20_000, tiny=1_000)
    flows: list[tuple[Slices, Slices]] = []
    pairs: list[Pair] = []
    for _ in range(options.pick(full=5, quick=2, tiny=1)):
        with fresh_database(options) as dsn, fresh_database(options) as clean, held_snapshot(dsn):
            flows.append(run(options, _side_by_side(dsn, clean, n)))
            pinned, limit = (_last(*side) for side in zip(flows[-1], (dsn, clean), strict=True))
            pairs.append((pinned, limit))
    drained_per_second, late = _late(options, n)
    whole = [(flow.rates(1)[0], clean.rates(1)[0]) for flow, clean in flows]
    result = summarize(
        PinnedResult,
        "pinned",
        n,
        pairs,
        whole_per_second=_median([here for here, _ in whole]),
        whole_ratio=round(statistics.median(here / there for here, there in whole), 3),
        drained_per_second=round(drained_per_second, 1),
        first_start_s=_median([max(flow.waits[-(_SLICES // _TENTHS) :]) for flow, _ in flows]),
        points=_points(n, flows),
        **late.fields(),
    )
    result.exactly_once = result.exactly_once and late.exactly_once
    return result


async def _side_by_side(pinned: str, clean: str, n: int) -> tuple[Slices, Slices]:
    """The two flows, slice by slice. Which is first changes, so that neither always follows on the other."""
    size = n // _SLICES
    async with _flow(pinned, n, size) as one, _flow(clean, n, size) as other:
        for number in range(_SLICES):
            for counter, conn in (one, other) if number % 2 else (other, one):
                counter.done.clear()
                jobs = (Noop(number=number * size + job) for job in range(size))
                Noop.enqueue_batch(conn, jobs, return_ids=False)
                counter.comes()
                await counter.done.wait()
    return one[0], other[0]


@asynccontextmanager
async def _flow(
    dsn: str, n: int, size: int
) -> AsyncIterator[tuple[Slices, psycopg.Connection[tuple[object, ...]]]]:
    """A runner, its counter, and a connection to enqueue on."""
    counter = Slices(n, size)
    handle = Runner(dsn, counter).register_job_type(Noop).start()
    with psycopg.connect(dsn, autocommit=True) as conn:
        await handle.ready()
        try:
            yield counter, conn
        finally:
            handle.shutdown()
            await handle.wait_for_shutdown()


def _last(counter: Slices, dsn: str) -> Sample:
    """The last tenth."""
    return Sample(
        per_second=counter.rates(_TENTHS)[-1],
        exactly_once=counter.exactly_once and rows(dsn) == 0,
    )


def _late(options: Options, n: int) -> tuple[float, PickUps]:
    with fresh_schema(options) as dsn:
        fill(dsn, n)
        with held_snapshot(dsn):
            before = drained(options, dsn, Counter(n), library_drain)
            late = pick_ups(options, dsn)
    late.exactly_once = late.exactly_once and before.exactly_once
    return before.per_second, late


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """A transaction that holds the oldest snapshot, and does nothing."""
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT count(*) FROM worker_sessions")
        yield


def _points(n: int, flows: list[tuple[Slices, Slices]]) -> list[Point]:
    return [
        Point(
            (tenth + 1) * n // _TENTHS,
            *(_median([flow[side].rates(_TENTHS)[tenth] for flow in flows]) for side in (0, 1)),
        )
        for tenth in range(_TENTHS)
    ]


def _median(rates: list[float]) -> float:
    return round(statistics.median(rates), 3)
