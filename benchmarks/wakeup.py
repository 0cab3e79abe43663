"""Where the time of a wake-up goes: what `latency` measures as a whole, stage by stage, and those of the bare path in turns.

The stages are told apart by wrapping three places of the library, which costs some microseconds itself.
"""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from workers.storage.postgres import claim_link, listener

from .bench import Options, fresh_schema, interleave, run
from .latency import WARM_UP, Arrivals, bare_latency, library_latency
from .report import Result, Sample, summarize

__all__ = ["WakeupResult", "wakeup"]


class WakeupResult(Result, kw_only=True, omit_defaults=True):
    """Medians in microseconds. `notice_us`: from the enqueue call until its notification is here; `to_claim_us`: until
    the claim is sent; `claim_us`: its round trip; `to_job_us`: from its reply to the first line of the job. `bare_*`: the
    same of the bare path; `slow_*`: of the library's slowest hundredth of the jobs."""

    notice_us: float
    to_claim_us: float
    claim_us: float
    to_job_us: float
    bare_notice_us: float
    bare_to_claim_us: float
    bare_claim_us: float
    bare_to_job_us: float
    slow_notice_us: float
    slow_to_claim_us: float
    slow_claim_us: float
    slow_to_job_us: float


class _Stamps:
    """When what happened."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def now(self, what: str) -> None:
        self.times[what].append(time.perf_counter())

    def after(self, moment: float, what: str) -> float:
        """The first time after that."""
        times = self.times[what]
        place = bisect(times, moment)
        return times[place] if place < len(times) else math.inf


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
    """300 jobs at 50 a second (60 when quick). `ratio`: p50 over the bare path's."""
    n = options.pick(full=300, quick=60, tiny=10)
    wakeups: list[list[float]] = []
    bare_wakeups: list[list[float]] = []

    def library() -> Sample:
        stamps = _Stamps()
        with fresh_schema(options) as dsn, _stamped(stamps):
            sample = run(options, library_latency(dsn, n, _Noting(stamps)))
        wakeups.extend(_stages(stamps))
        return sample

    def bare() -> Sample:
        stamps = _Stamps()
        with fresh_schema(options) as dsn:
            sample = run(options, bare_latency(dsn, n, _Noting(stamps), stamps.now))
        bare_wakeups.extend(_stages(stamps))
        return sample

    pairs = interleave(options.pairs, library, bare)
    ratios = [(sample.p50_ms or 0) / (limit.p50_ms or 1) for sample, limit in pairs]
    slow = sorted(wakeups, key=sum)[-max(1, len(wakeups) // 100) :]
    stages = _medians(wakeups, "") | _medians(bare_wakeups, "bare_") | _medians(slow, "slow_")
    return summarize(WakeupResult, "wakeup", n, pairs, ratios, **stages)


def _stages(stamps: _Stamps) -> list[list[float]]:
    """The seconds that each stage took of each job, after the warm-up, that no claim found which was on its way already."""
    found = []
    for sent, following in pairwise([*stamps.times["sent"][WARM_UP:], math.inf]):
        moments = [sent]
        for what in ("notified", "claiming", "claimed", "job"):
            moments.append(stamps.after(moments[-1], what))
        if moments[-1] < following:
            found.append([after - before for before, after in pairwise(moments)])
    return found


def _medians(wakeups: list[list[float]], prefix: str) -> dict[str, float]:
    names = ("notice_us", "to_claim_us", "claim_us", "to_job_us")
    stages = zip(*wakeups, strict=True)
    return {
        prefix + name: round(statistics.median(times) * 1e6)
        for name, times in zip(names, stages, strict=True)
    }


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
