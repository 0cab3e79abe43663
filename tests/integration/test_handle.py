"""The handle of a runner: `async with`, and looking at a runner without harming it."""

from __future__ import annotations

import asyncio

import anyio
import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import PATIENCE, World, eventually, make_runner, running
from workers import BackgroundJob, RunnerError
from workers.runtime import demand
from workers.storage.memory import MemoryStorage

ROWS = "SELECT retries, session_id IS NULL, last_error, run_at FROM background_jobs ORDER BY id"
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


@pytest.mark.parametrize("name", ["claimer-default", "claimer-default-loop", "listening"])
async def test_a_runner_of_which_a_task_is_cancelled_does_not_end_without_a_word(
    pool: AsyncPool, name: str
) -> None:
    """As by somebody who cancels single tasks out of `all_tasks`."""
    handle = make_runner(pool, Brief, context=World()).start()
    await handle.ready()
    await asyncio.sleep(0)
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == name)
    task.cancel()
    with pytest.raises(RunnerError, match="one of the runner's own tasks"):
        async with asyncio.timeout(PATIENCE):
            await handle.wait_for_shutdown()


class Tidies(BackgroundJob[World]):
    number: int

    async def run(self, ctx: World) -> None:
        ctx.note(str(self.number))
        if self.number == 300:
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "listening")
            task.cancel()


async def test_nor_does_one_amid_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claimer that goes from one claim to the next, each of them shielded, is never told that it is cancelled."""
    for most in ("MAX_PREFETCH", "MOST_PREFETCH"):
        monkeypatch.setattr(demand, most, 100)
    storage, world = MemoryStorage(), World()
    await Tidies.enqueue_batch(storage, [Tidies(number=number) for number in range(3000)])
    handle = make_runner(storage, Tidies, context=world, max_batch=50).start()
    with pytest.raises(RunnerError, match="one of the runner's own tasks"):
        async with asyncio.timeout(PATIENCE):
            await handle.wait_for_shutdown()
    assert 300 < len(world.seen) < 3000


async def test_a_runner_whose_task_is_cancelled_does_not_end_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by a job that tidies up with `all_tasks`: the application goes on, and must learn that its runner does not."""
    storage = MemoryStorage()
    handle = make_runner(storage, Brief, context=World()).start()
    await handle.ready()
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "workers-runner")
    task.cancel()
    with pytest.raises(RunnerError, match="cancelled"):
        async with asyncio.timeout(PATIENCE):
            await handle.wait_for_shutdown()
    (record,) = (record for record in caplog.records if record.levelname == "CRITICAL")
    assert "does something cancel all tasks" in record.getMessage()
