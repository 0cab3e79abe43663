"""Row 17: somebody's transaction stays open, idle, for the whole run."""

from __future__ import annotations

from benchmarks.bench import Options
from benchmarks.bench import Scale as Size
from benchmarks.pinned import pinned
from tests.faults.harness import Bench, Found, Scale, row

#: Of the clean rate.
_LEAST = 0.9
#: Seconds until a job is found that became available behind the place where claims begin.
_WITHIN = 2.0


@row(
    "17",
    "long transaction",
    "an idle REPEATABLE READ transaction while 1,000,000 jobs run, five times: all of them, and the last tenth, at >= 90% "
    "of the clean rate; late commits and retries behind those, amid others: found within 2 s, or within the budget of the "
    "thorough scan; twice 0",
)
def long_transaction(bench: Bench) -> Found:
    size = bench.pick(full=Size.FULL, quick=Size.QUICK, tiny=Size.TINY)
    result = pinned(Options(bench.dsn, size))
    found = Found(injected=result.runs + 1, jobs=result.n * (2 * result.runs + 1))
    found.expect(result.exactly_once, "not every job ran exactly once")
    for seconds in (
        result.first_start_s,
        result.late_notified_s,
        result.late_within_3s_s,
        result.retried_s,
    ):
        found.recovered(seconds, within=_WITHIN * bench.margin)
    found.expect(
        result.late_over_budget_s <= 0,
        f"a late one was found {result.late_over_budget_s:.2f} s after its budget",
    )
    if bench.scale is Scale.FULL:  # smaller ones are over before it could matter
        for what, ratio in (("the last tenth", result.ratio), ("the whole", result.whole_ratio)):
            found.expect(ratio >= _LEAST, f"{what} ran at {ratio:.2f} of the clean rate")
    return found
