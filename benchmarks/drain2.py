"""Empty a queue of no-op jobs in two processes.

In pairs with two bare loops in two processes (`ratio`), and beside one process with the library (`times_one_process`).
"""

from __future__ import annotations

import statistics

from .bench import Options, fill, fresh_schema, interleave, rows
from .child import Order, Task
from .children import run_children
from .report import Result, Sample, summarize

__all__ = ["Drain2Result", "drain2"]


class Drain2Result(Result, kw_only=True, omit_defaults=True):
    """`one_process_per_second`: the library in one such process; `times_one_process`: what the second one brings."""

    one_process_per_second: float
    times_one_process: float


def drain2(options: Options) -> Drain2Result:
    """100,000 jobs (20,000 when quick), default settings. From the first process's readiness to the last one's end."""
    n = options.pick(full=100_000, quick=20_000, tiny=300)
    single: list[Sample] = []

    def library() -> Sample:
        single.append(_drained(options, n, "drain", 1))
        return _drained(options, n, "drain", 2)

    pairs = interleave(options.pairs, library, lambda: _drained(options, n, "bare", 2))
    times = [two.per_second / one.per_second for (two, _), one in zip(pairs, single, strict=True)]
    result = summarize(
        Drain2Result,
        "drain2",
        n,
        pairs,
        one_process_per_second=round(statistics.median(one.per_second for one in single), 1),
        times_one_process=round(statistics.median(times), 3),
    )
    result.exactly_once = result.exactly_once and all(one.exactly_once for one in single)
    return result


def _drained(options: Options, n: int, task: Task, processes: int) -> Sample:
    with fresh_schema(options) as dsn:
        fill(dsn, n)
        orders = [Order(task=task, dsn=dsn, n=n, uvloop=options.uvloop)] * processes
        reports = [finding.report for finding in run_children(orders)]
        left = rows(dsn)
    runs = [sum(counts) for counts in zip(*(report.runs for report in reports), strict=True)]
    seconds = max(report.ended for report in reports) - min(report.started for report in reports)
    return Sample(per_second=n / seconds, exactly_once=runs == [1] * n and left == 0)
