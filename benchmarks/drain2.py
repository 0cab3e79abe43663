"""Empty a queue of no-op jobs in two processes.

In pairs with two bare loops in two processes (`ratio`), and beside one process with the library (`times_one_process`).
"""

from __future__ import annotations

import statistics

import msgspec

from .bench import Options, fill, fresh_schema, interleave, rows
from .child import Order, Task
from .children import run_children
from .report import Result, Sample, summarize

__all__ = ["Drain2Result", "drain2"]


class Drain2Result(Result, kw_only=True, omit_defaults=True):
    """`one_process_per_second`: the library in one such process; `times_one_process`: what the second one brings.

    Processor time in microseconds a job, with one process and with two: `*_own_us` theirs, `*_else_us` all other on the
    machine, which is the server's where nothing else runs there. `*_cores`: how many processors that keeps busy.
    """

    one_process_per_second: float
    times_one_process: float
    one_own_us: float
    one_else_us: float
    one_cores: float
    two_own_us: float
    two_else_us: float
    two_cores: float


class _Run(msgspec.Struct):
    sample: Sample
    own_us: float
    else_us: float

    @property
    def cores(self) -> float:
        return self.sample.per_second * (self.own_us + self.else_us) / 1e6


def drain2(options: Options) -> Drain2Result:
    """300,000 jobs (20,000 when quick), default settings. From the first process's readiness to the last one's end.

    So many that a run takes seconds: one process may be ready a twentieth of a second before the other.
    """
    n = options.pick(full=300_000, quick=20_000, tiny=300)
    ones: list[_Run] = []
    twos: list[_Run] = []

    def library() -> Sample:
        # neither always follows on the other
        for runs, processes in ((ones, 1), (twos, 2))[:: 1 if len(ones) % 2 else -1]:
            runs.append(_drained(options, n, "drain", processes))
        return twos[-1].sample

    pairs = interleave(options.pairs, library, lambda: _drained(options, n, "bare", 2).sample)
    singles = [one.sample for one in ones]
    times = [two.per_second / one.per_second for (two, _), one in zip(pairs, singles, strict=True)]
    result = summarize(
        Drain2Result,
        "drain2",
        n,
        pairs,
        one_process_per_second=round(statistics.median(one.per_second for one in singles), 1),
        times_one_process=round(statistics.median(times), 3),
        **_processors("one", ones),
        **_processors("two", twos),
    )
    result.exactly_once = result.exactly_once and all(one.exactly_once for one in singles)
    return result


def _processors(prefix: str, runs: list[_Run]) -> dict[str, float]:
    return {
        f"{prefix}_{name}": round(statistics.median(getattr(run, name) for run in runs), 2)
        for name in ("own_us", "else_us", "cores")
    }


def _drained(options: Options, n: int, task: Task, processes: int) -> _Run:
    with fresh_schema(options) as dsn:
        fill(dsn, n)
        orders = [Order(task=task, dsn=dsn, n=n, uvloop=options.uvloop)] * processes
        reports = [finding.report for finding in run_children(orders)]
        left = rows(dsn)
    runs = [sum(counts) for counts in zip(*(report.runs for report in reports), strict=True)]
    seconds = max(report.ended for report in reports) - min(report.started for report in reports)
    own = sum(report.own_seconds for report in reports)
    machine = max(report.machine_seconds for report in reports)
    sample = Sample(per_second=n / seconds, exactly_once=runs == [1] * n and left == 0)
    return _Run(sample, own / n * 1e6, (machine - own) / n * 1e6)
