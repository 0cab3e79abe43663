"""Cancellation inside jobs: what asyncio and anyio offer works, and what goes astray ends no worker (rule 13, fault 21)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import anyio
import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, running
from workers import BackgroundJob
from workers.job import ClaimedJob
from workers.job_type import describe
from workers.lifecycle import Failed, Interrupted
from workers.runtime import demand, worker
from workers.runtime.attempt import Attempt
from workers.runtime.executor import Executor
from workers.storage.postgres.storage import PostgresStorage

ROWS = "SELECT data->>'how', retries, last_error FROM background_jobs ORDER BY id"
WORDS = "the job cancelled the task it ran in"


def me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


class CancelItself(BackgroundJob[World]):
    backoff = 1000
    how: str

    async def run(self, ctx: World) -> None:
        ctx.note(self.how)
        me().cancel()
        match self.how:
            case "and returns":
                return
            case "and takes it back":  # until Python 3.13 that leaves it to the next step
                me().uncancel()
            case "and awaits":
                await asyncio.sleep(10)
            case "and raises":
                raise ValueError("after that")
            case "again and again":
                me().cancel()
                me().cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(10)
                me().cancel()
            case "and swallows it":
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(10)
            case "in a while":
                me().uncancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(me().cancel)
                await asyncio.sleep(10)


class Good(BackgroundJob[World]):
    """Would notice a cancellation, or traces of one, that was not meant for it."""

    number: int

    async def run(self, ctx: World) -> None:
        assert me().cancelling() == 0
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        with pytest.raises(ExceptionGroup):
            await self.fail_in_a_group()
        assert me().cancelling() == 0
        ctx.note(self.number)

    async def fail_in_a_group(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fail())
            await asyncio.sleep(10)

    async def fail(self) -> None:
        raise ValueError


async def test_a_job_may_cancel_its_own_task(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without an await after it: what becomes of that job is its own affair, and the next one is not touched."""
    # so that it is at hand, and begins in the same step of the task
    monkeypatch.setattr(demand, "MIN_RUNS", 1)
    monkeypatch.setattr(worker, "_SLICE", 60.0)
    ways = [
        "and returns",
        "and takes it back",
        "and awaits",
        "and raises",
        "again and again",
        "and swallows it",
        "in a while",
    ]
    for number, how in enumerate(ways * 2):
        CancelItself(how=how).enqueue(conn)
        Good(number=number).enqueue(conn)
    world = World()
    await drain(pool, CancelItself, Good, context=world, workers=1)
    assert [done for done in world.seen if isinstance(done, int)] == list(range(len(ways) * 2))
    failed = conn.execute(ROWS).fetchall()
    assert [how for how, _, _ in failed] == ["and awaits", "and raises", "in a while"] * 2
    assert {retries for _, retries, _ in failed} == {1}
    for how, _, error in failed:
        assert ("after that" if how == "and raises" else f"{WORDS}\nTraceback") in error


async def test_a_job_that_awaits_what_somebody_else_cancels(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The task it runs in is not cancelled by that, nor is its worker replaced."""

    class Await(BackgroundJob[World]):
        backoff = 1000
        how: str = ""

        async def run(self, ctx: World) -> None:
            other = asyncio.create_task(asyncio.sleep(10))
            asyncio.get_running_loop().call_soon(other.cancel)
            await other

    Await().enqueue(conn)
    Good.enqueue_batch(conn, [Good(number=number) for number in range(3)])
    world = World()
    await drain(pool, Await, Good, context=world, workers=1)
    assert "its worker is replaced" not in caplog.text
    assert world.seen == [0, 1, 2]
    ((_, retries, error),) = conn.execute(ROWS)
    assert retries == 1
    assert error.startswith("something that the job waited for was cancelled\nTraceback (most")
    assert "await other\n" in error


async def test_scopes_and_groups_inside_of_jobs(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """asyncio.timeout, anyio's scopes and task groups of both: each ends what it shall, and no more."""

    class Scopes(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            with anyio.move_on_after(0.001) as scope:
                await asyncio.sleep(10)
            assert scope.cancelled_caught
            with pytest.raises(TimeoutError):
                with anyio.fail_after(0.001):
                    await asyncio.sleep(10)
            with anyio.CancelScope() as outer:
                with anyio.CancelScope(shield=True):
                    outer.cancel()
                    await asyncio.sleep(0)
                    ctx.note("shielded")
                await asyncio.sleep(10)
            async with anyio.create_task_group() as group:
                group.start_soon(asyncio.sleep, 10)
                await asyncio.sleep(0)
                group.cancel_scope.cancel()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(10), 0.001)
            with pytest.raises(ExceptionGroup):
                await self.fail_in_a_group()
            assert sum(await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))) == 3
            ctx.note("done")

        async def fail_in_a_group(self) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(asyncio.sleep, 10)
                raise ValueError

    Scopes.enqueue_batch(conn, [Scopes() for _ in range(20)])
    Good.enqueue_batch(conn, [Good(number=number) for number in range(20)])
    world = World()
    await drain(pool, Scopes, Good, context=world, workers=3)
    assert world.seen.count("done") == 20
    assert sorted(done for done in world.seen if isinstance(done, int)) == list(range(20))


async def test_an_unhandled_timeout_is_an_ordinary_failure(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """A TimeoutError of the job's own is written as what it is."""

    class TooLate(BackgroundJob[Any]):
        async def run(self, ctx: Any) -> None:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(10)

    TooLate().enqueue(conn)
    await drain(pool, TooLate)
    ((retries, error),) = conn.execute("SELECT retries, last_error FROM background_jobs").fetchall()
    assert retries == 1
    assert error.endswith("TimeoutError\n")


async def test_a_stray_cancellation_ends_no_worker(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Idle workers, and one that runs a job in a thread, are cancelled from outside, again and again."""

    class InThread(BackgroundJob[World]):
        def run(self, ctx: World) -> None:
            ctx.signal("in thread")
            ctx.wait_in_thread("may end")
            ctx.note("thread done")

    InThread().enqueue(conn)
    world = World()
    async with running(pool, InThread, Good, context=world, workers=3):
        await world.wait("in thread")
        for _ in range(5):
            for task in asyncio.all_tasks():
                if task.get_name().startswith("worker-"):
                    task.cancel()
            await asyncio.sleep(0)
        Good.enqueue_batch(conn, [Good(number=number) for number in range(20)])
        world.signal("may end")
        workers = [t for t in asyncio.all_tasks() if t.get_name().startswith("worker-")]
        assert len(workers) == 3
        await drain(pool, Good, InThread, context=world)
    assert world.seen.count("thread done") == 1, "its outcome was written: it did not run again"
    assert len(world.seen) == 21
    assert conn.execute(ROWS).fetchall() == []


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_job_that_had_not_begun_is_innocent_of_its_cancellation(
    pool: AsyncPool, transactional: bool, in_thread: bool
) -> None:
    """However often one hits it that another job left behind: an attempt is not counted. One that had is believed once."""
    begun: list[str] = []
    name, uses_transaction = "hit", transactional

    class Hit(BackgroundJob[Any]):
        job_name = name
        transactional = uses_transaction

        async def run(self, ctx: Any) -> None:
            begun.append("async")
            await asyncio.sleep(10)

    class HitInThread(BackgroundJob[Any]):
        job_name = name
        transactional = uses_transaction

        def run(self, ctx: Any) -> None:
            begun.append("in thread")

    job = ClaimedJob(1, name, "default", 0, "{}", 0, 0, False, 1)
    job_type = describe(HitInThread if in_thread else Hit)
    storage = PostgresStorage(pool)
    executor = Executor(storage, None, copy_context(), 1, set(), lambda: False)
    outcomes = []
    for _ in range(3):
        attempt = Attempt(job, job_type, me(), 1, time.monotonic(), job_type.is_async, fresh=False)
        asyncio.get_running_loop().call_soon(me().cancel)
        ended = executor.start(attempt)
        outcome, _ = ended if isinstance(ended, tuple) else await ended
        me().uncancel()
        assert attempt.spoiled
        outcomes.append(type(outcome))
    await storage.close()
    if in_thread or transactional:
        assert begun == []
        assert outcomes == [Interrupted] * 3
    else:
        assert begun == ["async"] * 3
        assert outcomes == [Interrupted, Failed, Interrupted]


async def test_a_worker_is_replaced_when_a_job_leaves_a_cancelled_scope_behind(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """anyio cancels whatever the task awaits from then on: no later job may suffer from that."""
    scopes: list[anyio.CancelScope] = []

    class Leak(BackgroundJob[World]):
        how: str = ""

        async def run(self, ctx: World) -> None:
            scope = anyio.CancelScope()
            scopes.append(scope)
            scope.__enter__()
            scope.cancel()
            await asyncio.sleep(0)

    Leak().enqueue(conn)
    world = World()
    try:
        await drain(pool, Leak, Good, context=world, workers=1)
        Good.enqueue_batch(conn, [Good(number=number) for number in range(5)])
        await drain(pool, Good, context=world, workers=1)
    finally:
        for scope in scopes:  # or anyio's own attempts to cancel the task that is gone never end
            getattr(scope, "_tasks").clear()  # noqa: B009 - private
    assert world.seen == list(range(5))
    assert "its worker is replaced" in caplog.text


LEAKS: dict[str, Callable[[], Any]] = {
    "a timeout": lambda: asyncio.timeout(0.3).__aenter__(),
    "a scope": lambda: anyio.move_on_after(0.3).__enter__(),
    "a call": lambda: asyncio.get_running_loop().call_later(0.3, me().cancel),
}


@pytest.mark.parametrize("leak", LEAKS)
async def test_what_one_job_leaves_open_is_not_anothers_failure(
    pool: AsyncPool, conn: psycopg.Connection, leak: str
) -> None:
    """It strikes while the next job of the same worker runs: that one is given back, and runs again elsewhere."""

    class Leaky(BackgroundJob[World]):
        how: str

        async def run(self, ctx: World) -> None:
            left = LEAKS[self.how]()
            if asyncio.iscoroutine(left):
                await left

    class Innocent(BackgroundJob[World]):
        max_attempts = 1
        how: str = ""

        async def run(self, ctx: World) -> None:
            ctx.note("begun")
            if len(ctx.seen) == 1:
                await asyncio.sleep(10)  # until it is cancelled, or finds out that it is not
            ctx.note("done")

    conn.execute("SELECT 1")
    with conn.transaction():
        Leaky(how=leak).enqueue(conn)
        Innocent().enqueue(conn)
    world = World()
    await drain(pool, Leaky, Innocent, context=world, workers=1)
    assert world.seen == ["begun", "begun", "done"]
    assert conn.execute(ROWS).fetchall() == []
    assert conn.execute("SELECT count(*) FROM dead_jobs").fetchone() == (0,)


async def test_a_job_that_cancels_itself_is_counted_in_the_end(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """It is believed once that it was another one's doing, not for ever."""
    Good.enqueue_batch(conn, [Good(number=number) for number in range(3)])
    CancelItself(how="and awaits").enqueue(conn)
    world = World()
    await drain(pool, Good, CancelItself, context=world, workers=1)
    assert world.seen == [0, 1, 2, "and awaits", "and awaits"]
    ((_, retries, error),) = conn.execute(ROWS)
    assert retries == 1
    assert error.startswith(f"{WORDS}\nTraceback (most")
    assert "await asyncio.sleep(10)" in error
