"""Jobs that steer their own end, policies that decide it, rows that are kept: Cancel, Snooze, Discard, archive, requeue."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, running
from workers import BackgroundJob, Cancel, ClaimedJob, Discard, JobState, Snooze
from workers.storage.postgres.storage import PostgresStorage

ROWS = "SELECT retries, run_at IS NOT NULL, last_error FROM background_jobs"
DEAD = "SELECT reason, retries, last_error FROM dead_jobs ORDER BY id"
KEPT = "SELECT state, reason, retries FROM archived_jobs ORDER BY id"


class Bare(Cancel):
    """A Cancel that was derived carelessly."""

    def __init__(self) -> None:
        pass


class Steer(BackgroundJob[World]):
    backoff = 1000
    what: str

    async def run(self, ctx: World) -> None:
        ctx.note(self.what)
        match self.what:
            case "cancel":
                raise Cancel("no longer wanted\0")
            case "cancel silently":
                raise Cancel
            case "cancel carelessly":
                raise Bare
            case "discard":
                raise Discard("can never work")
            case "discard silently":
                raise Discard
            case "snooze":
                raise Snooze(500)


class SteerInThread(BackgroundJob[World]):
    what: str

    def run(self, ctx: World) -> None:
        match self.what:
            case "cancel":
                raise Cancel("no longer wanted")
            case "discard":
                raise Discard("can never work")
            case "snooze":
                raise Snooze(500)


async def test_cancel_ends_a_job_for_good(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """No retry, no dead letter: the archive keeps it as cancelled."""
    for what in ("cancel", "cancel silently", "cancel carelessly"):
        Steer(what=what).enqueue(conn)
    SteerInThread(what="cancel").enqueue(conn)
    await drain(pool, Steer, SteerInThread, context=World())
    reasons = ["no longer wanted\\x00", "", "", "no longer wanted"]
    assert conn.execute(KEPT).fetchall() == [("cancelled", reason, 0) for reason in reasons]
    assert conn.execute(ROWS).fetchall() == []
    assert conn.execute(DEAD).fetchall() == []


async def test_discard_is_a_death_at_once(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """The attempt counts; its reason and traceback are there for a human."""
    Steer(what="discard").enqueue(conn)
    Steer(what="discard silently").enqueue(conn)
    SteerInThread(what="discard").enqueue(conn)
    await drain(pool, Steer, SteerInThread, context=World())
    dead = conn.execute(DEAD).fetchall()
    reasons = ["can never work", "discarded by the job", "can never work"]
    assert [(reason, retries) for reason, retries, _ in dead] == [(reason, 1) for reason in reasons]
    assert all("Discard" in error for _, _, error in dead)


async def test_snooze_counts_nothing(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """The job waits for its time, with the attempts it had."""
    Steer(what="snooze").enqueue(conn)
    SteerInThread(what="snooze").enqueue(conn)
    await drain(pool, Steer, SteerInThread, context=World())
    query = "SELECT retries, extract(epoch FROM run_at - now()) BETWEEN 480 AND 501 FROM background_jobs"
    assert conn.execute(query).fetchall() == [(0, True), (0, True)]


async def test_a_snoozed_job_is_run_when_it_is_due(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """It comes back in the same attempt, by the maintenance pass."""

    class SnoozeOnce(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.note("run")
            if len(ctx.seen) == 1:
                raise Snooze(0.2)

    SnoozeOnce().enqueue(conn)
    world = World()
    async with running(pool, SnoozeOnce, context=world):
        await eventually(conn, ROWS, [], seconds=5)
    assert world.seen == ["run", "run"]


async def test_what_a_retry_policy_raises_loses_nothing(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A backoff that raises, even what ends programs: the failure is counted, and retried after a minute."""

    def broken(attempt: int) -> float:
        raise SystemExit

    class BadPolicy(BackgroundJob[Any]):
        backoff = staticmethod(broken)

        async def run(self, ctx: Any) -> None:
            raise ValueError("its own error")

    BadPolicy().enqueue(conn)
    await drain(pool, BadPolicy)
    ((retries, waits, error),) = conn.execute(ROWS).fetchall()
    assert (retries, waits) == (1, True)
    assert "SystemExit in the retry policy" in error
    assert "its own error" in error


async def test_archive(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """False, True, or a predicate that is asked with the job; one that raises keeps the job."""

    def predicate(job: ClaimedJob) -> bool:
        if "raise" in job.data:
            raise KeyboardInterrupt
        return "keep" in job.data

    class Base(BackgroundJob[Any]):
        what: str = ""

        async def run(self, ctx: Any) -> None: ...

    class Never(Base):
        archive = False

    class Always(Base):
        archive = True

    class Sometimes(Base):
        archive = staticmethod(predicate)

    Never().enqueue(conn)
    Always().enqueue(conn)
    for what in ("keep", "drop", "raise"):
        Sometimes(what=what).enqueue(conn)
    await drain(pool, Never, Always, Sometimes)
    query = "SELECT job_type, state, data->>'what' FROM archived_jobs ORDER BY id"
    assert conn.execute(query).fetchall() == [
        ("always", "completed", ""),
        ("sometimes", "completed", "keep"),
        ("sometimes", "completed", "raise"),
    ]
    assert conn.execute(ROWS).fetchall() == []


async def test_a_dead_job_gets_another_life(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """requeue: fresh counters, the same id, and the runner is woken."""

    class Twice(BackgroundJob[World]):
        max_attempts = 1

        async def run(self, ctx: World) -> None:
            ctx.note("run")
            if len(ctx.seen) == 1:
                raise ValueError

    job_id = Twice().enqueue(conn)
    assert job_id is not None
    world, storage = World(), PostgresStorage(pool)
    await storage.open()
    async with running(pool, Twice, context=world, poll=60):
        await eventually(conn, "SELECT id FROM dead_jobs", [(job_id,)])
        record = await storage.find(job_id)
        assert record is not None
        assert (record.state, record.retries) == (JobState.DEAD, 1)
        assert await storage.requeue([job_id]) == [job_id]
        await eventually(conn, ROWS, [])
    assert world.seen == ["run", "run"]
    assert conn.execute(DEAD).fetchall() == []
