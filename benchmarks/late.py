"""Jobs that become available behind the place where claims begin to look, while jobs flow.

A claim begins where the last one ended. The position of a job is drawn when it is inserted and the job is seen when that is
committed, so a slow transaction commits behind that place. How soon is its job picked up?
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg

from workers import BackgroundJob, Runner

from .bench import Options, rows, run
from .waiting import until

__all__ = ["PickUps", "pick_ups"]

#: A full scan may take 2% of the time: the next one is due after 50 times its duration, and made at the next poll.
_SCAN_SHARE = 50
_POLL = 1.1
_RETRY_AFTER = 0.5
_PATIENCE = 120.0
#: As a claim looks for its rows when it has no place to begin at.
_FULL_SCAN = """
SELECT id FROM background_jobs
WHERE queue = 'default' AND run_at IS NULL AND session_id IS NULL AND crashes = 0
ORDER BY priority DESC, position LIMIT 1
"""


class PickUps(msgspec.Struct, kw_only=True):
    """Seconds from the commit to the start of the job.

    `notified`: committed behind the hint, with its notification, by a transaction that was open for 1 s. `within_3s`: the
    same without a notification. `beyond`: open for 4.5 s; what finds it is a full scan of the queue, which takes
    `full_scan`. `retried`: from the end of the wait after a failure.
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
    short, long = options.pick(full=(1.0, 4.5), quick=(1.0, 4.5), tiny=(0.1, 0.2))
    logger = logging.getLogger("workers.jobs")
    level = logger.level
    logger.setLevel(logging.ERROR)  # one job fails, as it should
    try:
        return run(options, _pick_ups(dsn, short, long))
    finally:
        logger.setLevel(level)


async def _pick_ups(dsn: str, short: float, long: float) -> PickUps:
    log, stop = Log(), asyncio.Event()
    runner = Runner(dsn, log)
    for job_type in (Flowing, Late, Failing):
        runner.register_job_type(job_type)
    async with (
        runner.start(),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        flow = asyncio.create_task(_keep_flowing(dsn, stop))
        await asyncio.sleep(0.5)
        scan = await _full_scan(conn)
        # one after the other: what pulls the hint back for one of them would find the others too
        notified = await _commit_late(conn, log, "notified", short, notify=True)
        within_3s = await _commit_late(conn, log, "within_3s", short, notify=False)
        beyond = await _commit_late(conn, log, "beyond", long, notify=False)
        await Failing().enqueue(conn)
        await _expect(lambda: len(log.started.get("retried", ())) > 1, "the retried job")
        stop.set()
        sent = await flow
        await _expect(lambda: len(log.flowed) >= sent, "the flow")
    first, second = log.started["retried"][:2]
    runs = {name: len(starts) for name, starts in log.started.items()}
    once = runs == {"notified": 1, "within_3s": 1, "beyond": 1, "retried": 2}
    once = once and sorted(log.flowed) == list(range(sent)) and rows(dsn) == 0
    return PickUps(
        notified=notified,
        within_3s=within_3s,
        beyond=beyond,
        full_scan=scan,
        retried=second - first - _RETRY_AFTER,
        exactly_once=once,
    )


async def _keep_flowing(dsn: str, stop: asyncio.Event) -> int:
    """Some hundred jobs a second; returns how many."""
    sent = 0
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        while not stop.is_set():
            batch = [Flowing(number=number) for number in range(sent, sent + 20)]
            await Flowing.enqueue_batch(conn, batch)
            sent += len(batch)
            await asyncio.sleep(0.02)
    return sent


async def _full_scan(conn: psycopg.AsyncConnection[Any]) -> float:
    """Seconds that it takes to find the first waiting job from the beginning of the index; the worst of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        await conn.execute(_FULL_SCAN)
        times.append(time.perf_counter() - start)
    return max(times)


async def _commit_late(
    conn: psycopg.AsyncConnection[Any], log: Log, name: str, held: float, *, notify: bool
) -> float:
    """Enqueue in a transaction that is open for `held` seconds. Returns the seconds from its commit to the job's start."""
    async with conn.transaction():
        if not notify:
            await conn.execute("SET LOCAL workers.notify = 'off'")
        await Late(name=name).enqueue(conn)
        await asyncio.sleep(held)
        committed = time.perf_counter()
    await _expect(lambda: name in log.started, f"the job that committed late ({name})")
    return log.started[name][0] - committed


async def _expect(condition: Callable[[], bool], what: str) -> None:
    if not await until(condition, _PATIENCE):
        raise RuntimeError(f"{what} was not run within {_PATIENCE:g} s")
