"""Where the time of a wake-up goes: what `latency` measures as a whole, stage by stage.

The stages are told apart by wrapping three places of the library, which costs some microseconds itself.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from workers.storage.postgres import claim_link, listener

from .bench import Options, fresh_schema, run
from .latency import WARM_UP, Arrivals, library_latency
from .report import Result, summarize

__all__ = ["WakeupResult", "wakeup"]


class WakeupResult(Result, kw_only=True, omit_defaults=True):
    """Medians in microseconds. `notice_us`: from the enqueue call until its notification is here; `to_claim_us`: until
    the claim is sent; `claim_us`: its round trip; `to_job_us`: from its reply to the first line of the job."""

    notice_us: float
    to_claim_us: float
    claim_us: float
    to_job_us: float


class _Stamps:
    """When what happened."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def now(self, what: str) -> None:
        self.times[what].append(time.perf_counter())

    def after(self, moment: float, what: str) -> float:
        times = self.times[what]
        return times[bisect(times, moment)]


class _Noting(Arrivals):
    """Arrivals that are stamped too."""

    def __init__(self, stamps: _Stamps) -> None:
        super().__init__()
        self._stamps = stamps

    def sends(self, number: int) -> None:
        super().sends(number)
        self._stamps.now("sent")

    def arrived(self, number: int) -> None:
        super().arrived(number)
        self._stamps.now("job")


def wakeup(options: Options) -> WakeupResult:
    """300 jobs at 50 a second (60 when quick). No limit is measured: `ratio` is 1."""
    n = options.pick(full=300, quick=60, tiny=10)
    stamps = _Stamps()
    with fresh_schema(options) as dsn, _stamped(stamps):
        sample = run(options, library_latency(dsn, n, _Noting(stamps)))
    stages: dict[str, list[float]] = defaultdict(list)
    for sent in stamps.times["sent"][WARM_UP:]:
        before = sent
        for what in ("notified", "claiming", "claimed", "job"):
            at = stamps.after(before, what)
            stages[what].append(at - before)
            before = at
    notice, to_claim, claim, to_job = (
        round(statistics.median(times) * 1e6) for times in stages.values()
    )
    return summarize(
        WakeupResult,
        "wakeup",
        n,
        [(sample, sample)],
        notice_us=notice,
        to_claim_us=to_claim,
        claim_us=claim,
        to_job_us=to_job,
    )


@contextmanager
def _stamped(stamps: _Stamps) -> Iterator[None]:
    """Wrap where a notification is read, and where a claim is sent and its reply is here."""
    parse: Callable[[str], Any] = listener._parse
    claim: Callable[..., Any] = claim_link._run

    def stamped_parse(payload: str) -> Any:
        stamps.now("notified")
        return parse(payload)

    async def stamped_claim(*args: Any) -> Any:
        stamps.now("claiming")
        rows = await claim(*args)
        stamps.now("claimed")
        return rows

    vars(listener)["_parse"], vars(claim_link)["_run"] = stamped_parse, stamped_claim
    try:
        yield
    finally:
        vars(listener)["_parse"], vars(claim_link)["_run"] = parse, claim
