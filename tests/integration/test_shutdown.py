"""Shutting down: running jobs finish, nothing new is begun, and what was not begun goes back uncounted. Rule 28."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import anyio
import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import (
    PATIENCE,
    World,
    drain,
    eventually,
    listening_to,
    make_runner,
    running,
)
from workers import BackgroundJob, ConfigurationError, RunnerHandle, current_job
from workers.lifecycle import Interrupted
from workers.runtime import crew
from workers.telemetry import JobFinished

ROWS = "SELECT retries, session_id IS NULL, last_error, run_at FROM background_jobs ORDER BY id"
UNTOUCHED = (0, True, None, None)
CLAIMED = (0, False, None, None)
SESSIONS = "SELECT count(*) FROM worker_sessions"


class Hold(BackgroundJob[World]):
    """Runs until it may end; says how it was ended."""

    name: str = "it"

    async def run(self, ctx: World) -> None:
        ctx.signal(f"{self.name} runs")
        try:
            await ctx.wait("may end")
            ctx.note(f"{self.name} done")
        except asyncio.CancelledError:
            ctx.note(f"{self.name} interrupted")
            raise


class Stubborn(BackgroundJob[World]):
    """Goes on when it is interrupted, until it may end."""

    async def run(self, ctx: World) -> None:
        ctx.signal("stubborn runs")
        while not ctx.happened("may end"):
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                ctx.note("asked")
        ctx.note("done")


class HoldInThread(BackgroundJob[World]):
    fails: bool = False

    def run(self, ctx: World) -> None:
        ctx.signal("thread runs")
        ctx.wait_in_thread("may end")
        ctx.note("thread done")
        if self.fails:
            raise ValueError("at the end")


class Brief(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("brief")


async def ended(handle: RunnerHandle) -> list[int]:
    async with asyncio.timeout(PATIENCE):
        return await handle.wait_for_shutdown()


async def test_running_jobs_finish_and_nothing_new_begins(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A job that is enqueued after the shutdown waits for another runner; the session's row goes."""
    Hold().enqueue(conn)
    world = World()
    async with running(pool, Hold, Brief, context=world, grace=30) as handle:
        await world.wait("it runs")
        handle.shutdown()
        Brief().enqueue(conn)
        waiting = asyncio.create_task(handle.wait_for_shutdown())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        # a claim that was on its way may have brought it, and then gives it back
        await eventually(conn, ROWS, [CLAIMED, UNTOUCHED])
        world.signal("may end")
        async with asyncio.timeout(PATIENCE):
            assert await waiting == []
        assert world.seen == ["it done"]
        assert conn.execute(ROWS).fetchall() == [UNTOUCHED]
        assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_what_was_claimed_in_advance_goes_back_uncounted(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Guarantee 6: prefetched jobs are available again before the running ones are done."""
    Brief.enqueue_batch(conn, [Brief() for _ in range(30)])
    world = World()
    async with running(pool, Brief, Hold, context=world, workers=2, grace=30) as handle:
        await eventually(conn, ROWS, [])
        Hold.enqueue_batch(conn, [Hold() for _ in range(12)])
        await world.wait("it runs")
        claimed = "SELECT count(*) > 2 FROM background_jobs WHERE session_id IS NOT NULL"
        await eventually(conn, claimed, [(True,)])
        handle.shutdown()
        await eventually(conn, ROWS, [CLAIMED] * 2 + [UNTOUCHED] * 10)
        world.signal("may end")
        await ended(handle)
    assert world.seen == ["brief"] * 30 + ["it done"] * 2


async def test_the_grace_is_over(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Async jobs are interrupted, and go back uncounted, at once available to others."""
    job_id = Hold().enqueue(conn)
    world = World()
    with listening_to(JobFinished) as finished:
        async with running(pool, Hold, context=world, grace=0.05) as handle:
            await world.wait("it runs")
            handle.shutdown()
            assert await ended(handle) == []
    assert world.seen == ["it interrupted"]
    assert conn.execute(ROWS).fetchall() == [UNTOUCHED]
    assert [(event.job.id, type(event.outcome)) for event in finished] == [(job_id, Interrupted)]
    world.signal("may end")
    await drain(pool, Hold, context=world)
    assert world.seen == ["it interrupted", "it done"]


async def test_an_attempt_that_was_interrupted_is_the_same_attempt(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """current_job().attempt after an interruption."""

    class Attempt(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.note(current_job().attempt)
            ctx.signal("runs")
            if len(ctx.seen) < 3:
                await asyncio.sleep(60)

    Attempt().enqueue(conn)
    world = World()
    for _ in range(2):
        async with running(pool, Attempt, context=world, grace=0):
            async with asyncio.timeout(PATIENCE):
                await eventually(conn, ROWS, [CLAIMED])
    await drain(pool, Attempt, context=world)
    assert world.seen == [1, 1, 1]


@pytest.mark.parametrize("grace", [0, timedelta(0)])
async def test_a_second_shutdown_hurries(
    pool: AsyncPool, conn: psycopg.Connection, grace: float | timedelta
) -> None:
    """shutdown(grace=0) after a graceful one; a longer grace does not slow it down again."""
    Hold().enqueue(conn)
    world = World()
    async with running(pool, Hold, context=world, grace=60) as handle:
        await world.wait("it runs")
        handle.shutdown()
        waiting = asyncio.create_task(handle.wait_for_shutdown())
        await asyncio.wait([waiting], timeout=0.05)
        began = time.monotonic()
        handle.shutdown(grace=grace)
        handle.shutdown(grace=60)
        handle.shutdown()
        async with asyncio.timeout(PATIENCE):
            assert await waiting == []
        assert time.monotonic() - began < 3
    assert world.seen == ["it interrupted"]


async def test_a_grace_must_be_a_time(pool: AsyncPool) -> None:
    """A wrong one is refused, and changes nothing."""
    bad: Any
    async with running(pool, Brief, context=World()) as handle:
        for bad in (-1, float("nan"), "soon"):
            with pytest.raises(ConfigurationError, match="grace"):
                handle.shutdown(grace=bad)
        assert not handle.shutting_down


async def test_a_job_that_swallows_the_interruption(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is returned after some seconds; it keeps its claim until it ends, and then goes back uncounted."""
    monkeypatch.setattr(crew, "LAST_SECONDS", 0.1)
    job_id = Stubborn().enqueue(conn)
    world = World()
    handle = make_runner(pool, Stubborn, context=world, grace=0.05).start()
    await world.wait("stubborn runs")
    handle.shutdown()
    assert await ended(handle) == [job_id]
    assert conn.execute(ROWS).fetchall() == [CLAIMED]
    assert await ended(handle) == [job_id]
    world.signal("may end")
    await eventually(conn, ROWS, [UNTOUCHED])
    await eventually(conn, SESSIONS, [(0,)])
    assert world.seen == ["asked", "done"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_job_in_a_thread_that_will_not_end(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Rule 22: its id is returned, its claim and its session are kept while it runs, then its own outcome is written."""
    monkeypatch.setattr(crew, "LAST_SECONDS", 0.1)
    job_id = HoldInThread(fails=fails).enqueue(conn)
    world = World()
    handle = make_runner(pool, HoldInThread, Brief, context=world, grace=0.05).start()
    await world.wait("thread runs")
    handle.shutdown()
    assert await ended(handle) == [job_id]
    assert conn.execute(ROWS).fetchall() == [CLAIMED]
    assert conn.execute(SESSIONS).fetchone() == (1,)
    await drain(pool, HoldInThread, context=world)  # nobody else gets it meanwhile
    handle.shutdown(grace=0)
    assert conn.execute(ROWS).fetchall() == [CLAIMED]
    world.signal("may end")
    await eventually(conn, SESSIONS, [(0,)])
    assert world.seen == ["thread done"]
    if fails:
        ((retries, free, error, _),) = conn.execute(ROWS).fetchall()
        assert (retries, free) == (1, True)
        assert error.endswith("ValueError: at the end\n")
    else:
        assert conn.execute(ROWS).fetchall() == [], "what it has done is not done again"


async def test_async_with(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Ready when entered, ended when left, also by an exception or a cancellation."""
    world = World()
    sessions: list[int] = []

    async def block(error: type[Exception] | None) -> None:
        async with running(pool, Brief, context=world) as handle:
            assert conn.execute("SELECT id FROM worker_sessions").fetchall() == [(handle.session,)]
            sessions.append(handle.session)
            Brief().enqueue(conn)
            await eventually(conn, ROWS, [])
            if error is not None:
                raise error
            world.signal("inside")
            await asyncio.sleep(60)

    with pytest.raises(ZeroDivisionError):
        await block(ZeroDivisionError)
    assert conn.execute(SESSIONS).fetchone() == (0,)
    task = asyncio.create_task(block(None))
    await world.wait("inside")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert conn.execute(SESSIONS).fetchone() == (0,)
    assert len(set(sessions)) == 2, "an id is never used again"


async def test_shutdown_before_it_is_ready(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """It starts and ends, and leaves nothing."""
    Brief().enqueue(conn)
    handle = make_runner(pool, Brief, context=World()).start()
    handle.shutdown()
    await handle.ready()
    assert await ended(handle) == []
    assert conn.execute(SESSIONS).fetchone() == (0,)
    handle.shutdown()  # harmless after the end


async def test_cancelling_the_one_who_waits_leaves_the_runner_alone(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """wait_for_shutdown and ready are only ways to look."""
    world = World()
    async with running(pool, Brief, context=world) as handle:
        waiting = asyncio.create_task(handle.wait_for_shutdown())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        Brief().enqueue(conn)
        await eventually(conn, ROWS, [])
    assert world.seen == ["brief"]


async def test_outcomes_are_written_before_the_end(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A lock that holds up completions holds up the shutdown too."""
    Hold().enqueue(conn)
    world = World()
    async with running(pool, Hold, context=world) as handle:
        await world.wait("it runs")
        with psycopg.connect(conn.info.dsn, options=conn.info.options) as locker:
            locker.execute("LOCK TABLE background_jobs IN EXCLUSIVE MODE")
            world.signal("may end")
            handle.shutdown()
            waiting = asyncio.create_task(handle.wait_for_shutdown())
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            locker.commit()
        async with asyncio.timeout(PATIENCE):
            assert await waiting == []
    assert world.seen == ["it done"]
    assert conn.execute(ROWS).fetchall() == []


async def test_a_cancelled_scope_waits_for_the_end_of_the_runner_too(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """`async with` under anyio, which cancels every await again: what comes after the block may close what jobs use."""
    Hold().enqueue(conn)
    world = World()
    with anyio.CancelScope() as scope:
        async with running(pool, Hold, context=world, grace=0.1):
            await world.wait("it runs")
            scope.cancel()
            await asyncio.sleep(60)
    assert scope.cancelled_caught
    assert world.seen == ["it interrupted"]
    assert conn.execute(SESSIONS).fetchone() == (0,)
