"""Shutting down: running jobs finish, nothing new is begun, and what was not begun goes back uncounted. Rule 28."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

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
from workers import BackgroundJob, ConfigurationError, RunnerError, RunnerHandle, current_job
from workers.lifecycle import Interrupted
from workers.storage.base import Claimed, ClaimRequest
from workers.storage.memory import MemoryStorage
from workers.storage.postgres.session import PostgresControl
from workers.storage.postgres.storage import PostgresStorage
from workers.telemetry import JobFenced, JobFinished

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
            ctx.signal(f"runs {len(ctx.seen)}")
            if len(ctx.seen) < 3:
                await asyncio.sleep(60)

    Attempt().enqueue(conn)
    world = World()
    for run in (1, 2):
        async with running(pool, Attempt, context=world, grace=0):
            await world.wait(f"runs {run}")
    await drain(pool, Attempt, context=world)
    assert world.seen == [1, 1, 1]


async def test_a_second_shutdown_hurries(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """shutdown(grace=0) after a graceful one; a longer grace does not slow it down again."""
    Hold().enqueue(conn)
    world = World()
    async with running(pool, Hold, context=world, grace=60) as handle:
        await world.wait("it runs")
        handle.shutdown()
        waiting = asyncio.create_task(handle.wait_for_shutdown())
        await asyncio.wait([waiting], timeout=0.05)
        began = time.monotonic()
        handle.shutdown(grace=timedelta(0))
        handle.shutdown(grace=60)
        handle.shutdown()
        async with asyncio.timeout(PATIENCE):
            assert await waiting == []
        assert time.monotonic() - began < 3
    assert world.seen == ["it interrupted"]


@pytest.mark.parametrize("turns", range(6))
async def test_a_second_shutdown_hurries_whenever_it_comes(turns: int) -> None:
    """However far the first one has come by then."""
    storage, world = MemoryStorage(), World()
    await Hold().enqueue(storage)
    async with running(storage, Hold, context=world, grace=3600) as handle:
        await world.wait("it runs")
        handle.shutdown()
        for _ in range(turns):
            await asyncio.sleep(0)
        handle.shutdown(grace=0.0)
        assert await ended(handle) == []
    assert world.seen == ["it interrupted"]


async def test_a_grace_must_be_a_time(pool: AsyncPool) -> None:
    """A wrong one is refused, and changes nothing."""
    bad: Any
    async with running(pool, Brief, context=World()) as handle:
        for bad in (-1, float("nan"), "soon"):
            with pytest.raises(ConfigurationError, match="grace"):
                handle.shutdown(grace=bad)
        assert not handle.shutting_down


async def test_shutdown_before_it_is_ready(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """It ends without having begun, and leaves nothing."""
    Brief().enqueue(conn)
    handle = make_runner(pool, Brief, context=World()).start()
    handle.shutdown()
    with pytest.raises(RunnerError, match="shut down before it was ready"):
        await handle.ready()
    assert await ended(handle) == []
    assert conn.execute(SESSIONS).fetchone() == (0,)
    handle.shutdown()  # harmless after the end


async def test_shutdown_while_the_server_says_nothing() -> None:
    """A signal at start-up is not answered only when the connection was given up."""
    called = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        dsn = f"postgresql://{host}:{port}/nowhere?connect_timeout=600"
        handle = make_runner(dsn, Brief, context=World()).start()
        await called.wait()
        handle.shutdown()
        assert await ended(handle) == []


async def test_shutdown_while_the_session_can_not_be_opened(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread can't be stopped; it gives up what it gets as soon as it gets it."""
    begun, may_go_on = threading.Event(), threading.Event()
    open_session = PostgresControl.open

    def open_late(self: PostgresControl, *args: Any) -> int:
        begun.set()
        may_go_on.wait()
        return open_session(self, *args)

    monkeypatch.setattr(PostgresControl, "open", open_late)
    handle = make_runner(pool, Brief, context=World()).start()
    await asyncio.to_thread(begun.wait)
    handle.shutdown()
    assert await ended(handle) == []
    (keeper,) = [item for item in threading.enumerate() if item.name.startswith("workers-session")]
    may_go_on.set()
    await asyncio.to_thread(keeper.join)
    assert conn.execute(SESSIONS).fetchone() == (0,)


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


async def test_a_claim_on_its_way_begins_nothing_after_the_shutdown(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Rule 28: what it brings goes back."""
    Brief().enqueue(conn)
    world = World()
    with psycopg.connect(conn.info.dsn, options=conn.info.options) as locker:
        locker.execute("LOCK TABLE background_jobs IN EXCLUSIVE MODE")
        async with running(pool, Brief, context=world) as handle:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'background_jobs'::regclass"
            async with asyncio.timeout(PATIENCE):
                while conn.execute(waiting).fetchone() == (0,):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            handle.shutdown()
            locker.rollback()
            assert await ended(handle) == []
    assert world.seen == []
    assert conn.execute(ROWS).fetchall() == [UNTOUCHED]


async def test_the_session_lives_until_everything_is_written(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 28: it would give back what has run, and its outcome would be refused."""
    arrived, may_go_on = asyncio.Event(), asyncio.Event()
    complete = PostgresStorage.complete

    async def held(self: PostgresStorage, *args: Any) -> Any:
        arrived.set()
        await may_go_on.wait()
        return await complete(self, *args)

    monkeypatch.setattr(PostgresStorage, "complete", held)
    Brief().enqueue(conn)
    with listening_to(JobFenced) as fenced:
        async with running(pool, Brief, context=World()) as handle:
            await arrived.wait()
            handle.shutdown()
            done, _ = await asyncio.wait([asyncio.ensure_future(ended(handle))], timeout=0.3)
            assert not done
            assert conn.execute(SESSIONS).fetchone() == (1,)
            may_go_on.set()
            assert await ended(handle) == []
    assert conn.execute(ROWS).fetchall() == []
    assert fenced == []


class Silent(MemoryStorage):
    """From some time on it lets claims wait."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = asyncio.Event()

    async def claim(self, request: ClaimRequest) -> Claimed:
        if not self.answers.is_set():
            self.asked.set()
        await self.answers.wait()
        return await super().claim(request)


async def test_the_grace_does_not_wait_for_a_claim_that_is_on_its_way() -> None:
    """A server that says nothing may take half a minute to be given up."""
    storage, world = Silent(), World()

    class Patient(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.signal("runs")
            try:
                await ctx.wait("may end")
            finally:
                ctx.signal("stopped")

    await Patient().enqueue(storage)
    async with running(storage, Patient, context=world, poll=0.05) as handle:
        await world.wait("runs")
        storage.answers.clear()
        await storage.asked.wait()
        handle.shutdown(grace=0.0)
        await world.wait("stopped")
        storage.answers.set()
        assert await ended(handle) == []
    [queue] = await storage.stats()
    assert (queue.available, queue.running) == (1, 0)
