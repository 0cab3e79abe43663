"""`timeout` per job type: an attempt that takes too long is ended, if that can be done, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import PATIENCE, World, drain, eventually, make_runner, running
from workers import BackgroundJob, FailedJobsError, Snooze, current_job
from workers.runtime import worker

ROWS = "SELECT retries, session_id IS NULL, last_error FROM background_jobs"
TIMED_OUT = "timed out after 0.1 s (ended after "


async def test_an_async_job_is_ended_and_counted(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """It sees a cancellation at its await; what is written says what happened, in its first line, and where."""

    class Slow(BackgroundJob[World]):
        timeout = timedelta(seconds=0.1)

        async def run(self, ctx: World) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ctx.note("cancelled")
                raise

    Slow().enqueue(conn)
    world = World()
    began = time.monotonic()
    await drain(pool, Slow, context=world)
    assert time.monotonic() - began < 5
    assert world.seen == ["cancelled"]
    ((retries, free, error),) = conn.execute(ROWS).fetchall()
    assert (retries, free) == (1, True)
    assert error.startswith(TIMED_OUT)
    assert "await asyncio.sleep(60)" in error  # where it hung
    assert error.endswith("CancelledError\n")
    jobs = [each for each in caplog.records if each.name == "workers.jobs"]
    (record,) = [each for each in jobs if each.levelno >= logging.WARNING]
    assert TIMED_OUT in record.getMessage()
    assert record.exc_text is not None
    assert "await asyncio.sleep(60)" in record.exc_text
    assert record.exc_info is not None
    assert isinstance(raised := record.exc_info[1], TimeoutError)
    assert isinstance(raised.__cause__, asyncio.CancelledError)
    runner = make_runner(pool, Slow, context=world)
    with pytest.raises(FailedJobsError, match=rf"slow: {re.escape(TIMED_OUT)}.*\)$"):
        await runner.check_for_failed_jobs()


async def test_jobs_that_swallow_their_cancellation(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked again. However they end then, they timed out, unless they ask for something else."""
    monkeypatch.setattr(worker, "ASK_AGAIN", 0.5)

    class Stubborn(BackgroundJob[World]):
        timeout = 0.1
        ends: str

        async def run(self, ctx: World) -> None:
            for _ in range(2):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    ctx.note("asked")
            if self.ends == "raises":
                raise ValueError
            if self.ends == "snoozes":
                raise Snooze(1000)

    class Next(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            await asyncio.sleep(0.01)
            ctx.note("next")

    Stubborn.enqueue_batch(conn, [Stubborn(ends=ends) for ends in ("returns", "raises", "snoozes")])
    Next.enqueue_batch(conn, [Next() for _ in range(3)])
    world = World()
    await drain(pool, Stubborn, Next, context=world, workers=3)
    assert world.seen == ["asked"] * 6 + ["next"] * 3
    returned, raised, snoozed = conn.execute(f"{ROWS} ORDER BY id".encode()).fetchall()
    assert snoozed == (0, True, None)
    for retries, free, error in (returned, raised):
        assert (retries, free) == (1, True)
        assert error.startswith(TIMED_OUT)
    assert returned[2].endswith(")")  # it was nowhere any more
    assert raised[2].endswith("\nValueError\n")


async def test_a_job_may_clean_up_after_itself(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """What takes longer than a second, such as a rollback far away, is not broken off."""

    class Careful(BackgroundJob[World]):
        timeout = 0.1

        async def run(self, ctx: World) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(1.2)
                ctx.note("clean")

    Careful().enqueue(conn)
    world = World()
    await drain(pool, Careful, context=world)
    assert world.seen == ["clean"]


async def test_a_job_in_a_thread_keeps_its_claim_until_it_ends(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread can't be ended: nobody else runs the job meanwhile, and then it is recorded as timed out."""

    class Overrun(BackgroundJob[World]):
        timeout = 0.1

        def run(self, ctx: World) -> None:
            deadline = current_job().deadline
            assert deadline is not None
            ctx.wait_in_thread("may end")

    Overrun().enqueue(conn)
    world = World()
    async with running(pool, Overrun, context=world):
        await eventually(conn, ROWS, [(0, False, None)])
        async with asyncio.timeout(PATIENCE):
            while "past its timeout of 0.1 s" not in caplog.text:  # noqa: ASYNC110 - a log can't be awaited
                await asyncio.sleep(0.01)
        assert conn.execute(ROWS).fetchall() == [(0, False, None)]
        await drain(pool, Overrun, context=world)  # another runner finds nothing to do
        world.signal("may end")
        await eventually(conn, "SELECT retries FROM background_jobs", [(1,)])
    ((_, free, error),) = conn.execute(ROWS).fetchall()
    assert free
    assert error.startswith(TIMED_OUT)
    assert "Traceback" not in error


async def test_an_awaitable_from_a_thread_is_ended_too(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """The part of `def run` that is awaited is like any async job; it does not begin after the time is over."""

    class Later(BackgroundJob[World]):
        timeout = 0.1
        in_thread: float

        def run(self, ctx: World) -> Awaitable[None]:
            time.sleep(self.in_thread)
            return self.later(ctx)

        async def later(self, ctx: World) -> None:
            ctx.note("began")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            ctx.note("ended")

    Later(in_thread=0).enqueue(conn)
    world = World()
    await drain(pool, Later, context=world)
    assert world.seen == ["began", "ended"]
    Later(in_thread=0.2).enqueue(conn)
    await drain(pool, Later, context=world)
    assert world.seen == ["began", "ended"]
    rows = conn.execute(ROWS).fetchall()
    assert [row[:2] for row in rows] == [(1, True)] * 2
    assert all(error.startswith(TIMED_OUT) for _, _, error in rows)
    assert not any("Stopped" in error for _, _, error in rows)


async def test_deadline_and_remaining(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """A job can see how much time is left to it, in the loop and in a thread."""

    class Look(BackgroundJob[World]):
        timeout = 5
        in_thread: bool

        def run(self, ctx: World) -> Any:
            return self.look(ctx) if self.in_thread else self.later(ctx)

        async def later(self, ctx: World) -> None:
            self.look(ctx)

        def look(self, ctx: World) -> None:
            job = current_job()
            assert job.deadline is not None
            ctx.note((job.deadline - time.monotonic(), job.remaining))

    Look.enqueue_batch(conn, [Look(in_thread=flag) for flag in (True, False)])
    world = World()
    await drain(pool, Look, context=world)
    assert len(world.seen) == 2
    assert all(4 < remaining <= deadline <= 5 for deadline, remaining in world.seen)


async def test_a_job_in_time_is_left_alone(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """A timeout that did not strike does not strike the next job either."""

    class Quick(BackgroundJob[World]):
        timeout = 0.3
        number: int

        async def run(self, ctx: World) -> None:
            await asyncio.sleep(0.2)
            ctx.note(self.number)

    Quick.enqueue_batch(conn, [Quick(number=number) for number in range(4)])
    world = World()
    await drain(pool, Quick, context=world, workers=1)
    assert world.seen == [0, 1, 2, 3]
    assert conn.execute(ROWS).fetchall() == []
