"""Jobs that become available behind the place where claims begin to look, while jobs flow.

A claim begins where the last one ended. The position of a job is drawn when it is inserted and the job is seen when that is
committed, so a slow transaction commits behind that place. How soon is its job picked up?
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import psycopg

from workers import BackgroundJob, Runner

from .bench import Options, rows, run

__all__ = ["PickUps", "pick_ups"]

#: A full scan may take 2% of the time, so the next one is due after 50 times its duration; a poll may pass before it is made.
_SCAN_SHARE = 50
_POLL = 1.1
_RETRY_AFTER = 0.5


class PickUps(msgspec.Struct, kw_only=True):
    """Seconds from the commit to the start of the job.

    `notified`: committed behind the hint, with its notification. `within_3s`: without one, by a transaction of 1 s.
    `beyond`: the same, of 4.5 s; found by a full scan of the queue, which took `full_scan`. `retried`: from the end of the
    wait after a failure.
    """

    notified: float
    within_3s: float
    beyond: float
    full_scan: float
    retried: float
    exactly_once: bool

    def fields(self) -> dict[str, float]:
        """For the result."""
        over = self.beyond - (_SCAN_SHARE * self.full_scan + _POLL)
        return {
            "late_notified_s": round(self.notified, 3),
            "late_within_3s_s": round(self.within_3s, 3),
            "late_beyond_s": round(self.beyond, 3),
            "late_over_budget_s": round(max(0.0, over), 3),
            "full_scan_s": round(self.full_scan, 4),
            "retried_s": round(self.retried, 3),
        }


class Log:
    """When each late job ran, by name; how many of the flow's jobs ran, and whether one ran twice."""

    def __init__(self) -> None:
        self.started: dict[str, list[float]] = {}
        self.flowed: list[int] = []

    def late(self, name: str) -> None:
        """A late job starts."""
        self.started.setdefault(name, []).append(time.perf_counter())


class Flowing(BackgroundJob[Log]):
    """One of many."""

    number: int

    async def run(self, log: Log) -> None:
        log.flowed.append(self.number)


class Late(BackgroundJob[Log]):
    """Notes when it starts."""

    name: str

    async def run(self, log: Log) -> None:
        log.late(self.name)


class Failing(BackgroundJob[Log]):
    """Fails once."""

    backoff = _RETRY_AFTER

    async def run(self, log: Log) -> None:
        log.late("retried")
        if len(log.started["retried"]) == 1:
            raise RuntimeError("fails once")


def pick_ups(options: Options, dsn: str) -> PickUps:
    """Measure, in a schema that is as it is."""
    return run(options, _pick_ups(dsn))


async def _pick_ups(dsn: str) -> PickUps:
    log = Log()
    runner = Runner(dsn, log)
    for job_type in (Flowing, Late, Failing):
        runner.register_job_type(job_type)
    async with runner.start():
        flow = asyncio.create_task(_keep_flowing(dsn, log))
        await asyncio.sleep(0.5)
        scan = await _full_scan(dsn)
        committed = await asyncio.gather(
            _commit_late(dsn, "notified", 1.0, notify=True),
            _commit_late(dsn, "within_3s", 1.0, notify=False),
            _commit_late(dsn, "beyond", 4.5, notify=False),
            _fail(dsn),
        )
        names = ("notified", "within_3s", "beyond", "retried")
        await _until(lambda: len(log.started) == 4 and len(log.started["retried"]) == 2, 60 + 60 * scan)
        flow.cancel()
        sent = await flow
        await _until(lambda: len(log.flowed) == sent, 10)
    took = {name: log.started[name][-1] - at for name, at in zip(names, committed, strict=True)}
    counts = {name: len(starts) for name, starts in log.started.items()}
    once = counts == dict.fromkeys(names, 1) | {"retried": 2} and sorted(log.flowed) == list(range(sent))
    took["retried"] = log.started["retried"][1] - log.started["retried"][0] - _RETRY_AFTER
    return PickUps(**took, full_scan=scan, exactly_once=once and rows(dsn) == 0)


async def _keep_flowing(dsn: str, log: Log) -> int:
    """Some hundred jobs a second, until cancelled; returns how many."""
    sent = 0
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        try:
            while True:
                batch = [Flowing(number=number) for number in range(sent, sent + 20)]
                sent += len(batch)
                await asyncio.shield(asyncio.ensure_future(Flowing.enqueue_batch(conn, batch)))
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            return sent
