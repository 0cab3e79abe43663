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
from itertools import pairwise
from typing import Any

from workers.storage.postgres import claim_link, listener

from .bench import Options, fresh_schema, run
from .latency import WARM_UP, Arrivals, library_latency
from .report import Result, summarize

__all__ = ["WakeupResult", "wakeup"]


class WakeupResult(Result, kw_only=True, omit_defaults=True):
    """Medians in microseconds. `notice_us`: from the enqueue call until its notification is here; `to_claim_us`: until
    the claim is sent; `claim_us`: its round trip; `to_job_us`: from its reply to the first line of the job. `slow_*`: the
    same of the slowest hundredth of the jobs."""

    notice_us: float
    to_claim_us: float
    claim_us: float
    to_job_us: float
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
    wakeups = sorted((_stages(stamps, sent) for sent in stamps.times["sent"][WARM_UP:]), key=sum)
    slow = wakeups[-max(1, n // 100) :]
    return summarize(
        WakeupResult,
        "wakeup",
        n,
        [(sample, sample)],
        **_medians(wakeups, ""),
        **_medians(slow, "slow_"),
    )


def _stages(stamps: _Stamps, sent: float) -> list[float]:
    """The seconds that each stage took of the job that was sent then."""
    moments = [sent]
    for what in ("notified", "claiming", "claimed", "job"):
        moments.append(stamps.after(moments[-1], what))
    return [after - before for before, after in pairwise(moments)]


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
