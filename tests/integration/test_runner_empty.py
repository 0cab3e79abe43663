"""`shutdown_when_queue_empty`: it returns when nothing is claimable and nothing runs in this runner, and not before."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import PATIENCE, World, drain, make_runner, running
from workers import BackgroundJob, Snooze

COUNT = "SELECT count(*) FROM background_jobs"


class Note(BackgroundJob[World]):
    number: int = 0

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class Later(BackgroundJob[World]):
    queue = "later"
    deduplicated = True

    what: str = "fail"

    async def run(self, ctx: World) -> None:
        ctx.note(self.what)
        if self.what == "snooze":
            raise Snooze(1000)
        raise ValueError


class Unknown(BackgroundJob[Any]):
    async def run(self, ctx: Any) -> None: ...


async def test_an_empty_queue(pool: AsyncPool) -> None:
    """It returns although there never was a job."""
    await drain(pool, Note)


async def test_rows_that_do_not_count(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Scheduled, retryable and snoozed jobs, and those of other types, stay and keep nobody waiting."""
    Note(number=1).enqueue(conn, delay=1000)
    Later(what="fail").enqueue(conn)
    Later(what="snooze").enqueue(conn)
    Unknown().enqueue(conn)
    Note(number=2).enqueue(conn)
    conn.execute("INSERT INTO background_jobs (job_type, data) VALUES ('unheard_of', '{}')")
    world = World()
    await drain(pool, Note, Later, context=world)
    assert sorted(world.seen, key=str) == [2, "fail", "snooze"]
    assert conn.execute(COUNT).fetchone() == (5,)


async def test_bare_inserts_count(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """A row without queue gets its declared one first, and runs."""
    conn.execute(
        "INSERT INTO background_jobs (job_type, data) SELECT 'note', '{}' FROM generate_series(1, 30)"
    )
    world = World()
    await drain(pool, Note, context=world)
    assert len(world.seen) == 30


@pytest.mark.parametrize("attempt", range(2))
async def test_jobs_that_enqueue_further_ones(
    pool: AsyncPool, conn: psycopg.Connection, attempt: int
) -> None:
    """Into other queues, back and forth, in the moment in which the runner looks around."""

    class Ping(BackgroundJob[World]):
        queue = "ping"
        left: int

        async def run(self, ctx: World) -> None:
            if self.left:
                async with pool.connection() as conn:
                    await Pong(left=self.left - 1).enqueue(conn)
            ctx.note(self.left)

    class Pong(BackgroundJob[World]):
        queue = "pong"
        left: int

        async def run(self, ctx: World) -> None:
            ctx.note(self.left)
            if self.left:
                await asyncio.sleep(0.03)  # longer than the runner waits between two looks
                async with pool.connection() as conn:
                    await Ping(left=self.left - 1).enqueue(conn)

    Ping(left=20).enqueue(conn)
    world = World()
    await drain(pool, Ping, Pong, context=world, listen=attempt % 2 == 0, poll=30)
    assert sorted(world.seen) == list(range(21))
    assert conn.execute(COUNT).fetchone() == (0,)


async def test_a_job_that_runs_here_counts(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """The runner waits for it, although its queue is empty."""

    class Slow(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.signal("runs")
            await ctx.wait("may end")
            ctx.note("done")

    Slow().enqueue(conn)
    world = World()
    handle = make_runner(pool, Slow, context=world).shutdown_when_queue_empty().start()
    waiting = asyncio.create_task(handle.wait_for_shutdown())
    await world.wait("runs")
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    world.signal("may end")
    async with asyncio.timeout(PATIENCE):
        assert await waiting == []
    assert world.seen == ["done"]


async def test_a_job_that_runs_elsewhere_does_not(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Two runners: one is done while the other still works."""

    class Slow(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.signal("runs")
            await ctx.wait("may end")

    Slow().enqueue(conn)
    world = World()
    async with running(pool, Slow, context=world):
        await world.wait("runs")
        await drain(pool, Slow, context=World())
        assert not world.happened("may end")
        world.signal("may end")


async def test_shutdown_while_it_looks(pool: AsyncPool) -> None:
    """A shutdown that comes while the session thread is asked leaves that thread alive and the runner in order."""
    for _ in range(10):
        runner = make_runner(pool, Note, context=World(), poll=30).shutdown_when_queue_empty()
        async with runner.start() as handle:
            handle.shutdown()
