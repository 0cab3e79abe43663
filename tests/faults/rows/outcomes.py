"""Row 7: outcomes that no store takes, and that nobody can show."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.helpers.fault_jobs import Brief
from tests.helpers.history import Event
from tests.helpers.outcomes import RAISED, RETURNED, STEERED
from tests.helpers.poison_jobs import (
    Failing,
    Raising,
    RaisingInThread,
    RaisingLater,
    Returning,
    ReturningInThread,
)
from workers import JobState
from workers.job import JobRecord
from workers.runtime.failure import MAX_ERROR
from workers.storage import open_storage

_RAISING: tuple[Any, ...] = (Raising, RaisingLater, RaisingInThread)
_RETURNING: tuple[Any, ...] = (Returning, ReturningInThread)
_TYPES = "brief,failing,raising,raising_later,raising_in_thread,returning,returning_in_thread"
_PATIENCE = 60.0
#: Seconds from the end of an ordinary job until that is written.
_WITHIN = 1.0
#: What can't be stored is written with up to six characters in place of one.
_LONGEST = 6 * MAX_ERROR
_UNWRITTEN = "SELECT id FROM background_jobs WHERE job_type IN ('brief', 'failing') AND retries = 0"


@row(
    "7",
    "poison outcomes",
    "exceptions, reasons and results with NUL, lone surrogates, 100 MB, a `__str__` that raises or leaves: those of the "
    "other jobs are written within 1 s, each of these is a retry or an end of its own, what is stored of it is capped",
)
def poison_outcomes(bench: Bench) -> Found:
    others = bench.pick(full=1000, quick=500, tiny=100)
    found = Found(injected=0, jobs=0)
    for _ in range(bench.pick(full=10, quick=1, tiny=1)):
        _once(bench, found, others)
    return found


def _once(bench: Bench, found: Found, others: int) -> None:
    jobs: list[Any] = [Brief(key=key, seconds=0.002) for key in range(others)]
    jobs += [Failing() for _ in range(others // 10)]
    poison = [kind(what=what) for kind in _RAISING for what in (*RAISED, *STEERED)]
    poison += [kind(what=what) for kind in _RETURNING for what in RETURNED]
    jobs += poison
    bench.chance.shuffle(jobs)
    with bench.stage() as (url, conn, history, workers):
        ids: dict[int, Any] = {job.enqueue(conn): job for job in jobs}
        members = [workers.start(_TYPES, workers=4) for _ in range(2)]
        for member in members:
            member.ready()
        written = _written(conn)
        history.wait_for("end", "broken", where=_last_of(ids), count=len(ids), seconds=_PATIENCE)
        for member in members:
            member.send(signal.SIGTERM)
            found.expect(member.wait() == 0, "a worker did not end well")

        for event in history.events("end", "broken"):
            if event.job in written:
                found.recovered(written[event.job] - event.at, within=_WITHIN * bench.margin)
        fail = [job for job, what in ids.items() if isinstance(what, (Failing, *_RAISING))]
        found.judge(history.check(ids, explained=fail))
        _ended(found, ids, asyncio.run(_records(url)))
        found.injected += len(poison)
        found.jobs += len(ids)


def _last_of(ids: Iterable[int]) -> Callable[[Event], bool]:
    """Each job once: what another job's cancellation has hit runs again."""
    waiting = set(ids)

    def first_end(event: Event) -> bool:
        if event.job not in waiting:
            return False
        waiting.remove(event.job)
        return True

    return first_end


def _written(conn: psycopg.Connection[Any]) -> dict[int, float]:
    """When the outcome of each of the other jobs was seen in the tables."""
    waiting, seen, pause = set[int](), dict[int, float](), threading.Event()
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        left = {job for (job,) in conn.execute(_UNWRITTEN)}
        now = time.monotonic()
        seen |= dict.fromkeys(waiting - left, now)
        waiting = left
        if not left:
            return seen
        pause.wait(0.01)
    raise TimeoutError(f"not written: {sorted(waiting)[:10]}")


async def _records(url: str) -> dict[int, JobRecord]:
    """All that is left, as the library reads it."""
    async with open_storage(url) as storage:
        return {
            record.id: record
            for state in JobState
            for record in await storage.list_jobs(state, limit=10_000)
        }


def _ended(found: Found, ids: dict[int, Any], records: dict[int, JobRecord]) -> None:
    """Each failure is a retry with its error, each that steers has its way, and the rest is gone."""
    for job, what in ids.items():
        record, state, words = records.pop(job, None), None, ""
        if isinstance(what, Failing):
            state, words = JobState.RETRYABLE, "ValueError: always"
        elif isinstance(what, _RAISING) and what.what in RAISED:
            state, words = JobState.RETRYABLE, RAISED[what.what][1]
        elif isinstance(what, _RAISING):
            _, state, words = STEERED[what.what]
        if record is None or state is None:
            as_said = record is None and state is None
            found.expect(as_said, f"{what!r:.100} is not {state} but {record!r:.500}")
            continue
        said = [text for text in (record.last_error, record.reason) if text is not None]
        good = record.state == state and any(words in text for text in said)
        good = good and (state != JobState.RETRYABLE or record.retries == 1)
        found.expect(good, f"{what!r:.100} is {record.state}, not {state}: {said!r:.500}")
        longest = max(map(len, said), default=0)
        found.expect(longest <= _LONGEST, f"{what!r:.100}: {longest} characters are stored")
    found.expect(not records, f"left behind: {sorted(records)[:10]}")
