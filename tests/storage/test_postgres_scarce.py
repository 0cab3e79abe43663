"""A server that gives no more connections: those that are kept idle for some are closed for others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from anyio import to_thread
from psycopg import sql

from tests.helpers.role_users import limited_user
from tests.storage.engines import PostgresEngine, Runner, mails
from workers.errors import StorageUnavailableError
from workers.job import ClaimedJob
from workers.lifecycle import Delete
from workers.storage.base import Guard, Settlement
from workers.storage.postgres import kept_links

KINDS = ("async", "sync")
both = pytest.mark.parametrize(("kind", "other"), [KINDS, KINDS[::-1]])
_HELD = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"


class Bench:
    """An engine whose user may have no more connections than it is allowed."""

    def __init__(self, engine: PostgresEngine, user: str) -> None:
        self.engine, self.user = engine, user
        self.runner: Runner = engine.runner()
        self.links: Any = engine.storage._transactions._links  # type: ignore[attr-defined]

    def allow(self, more: int) -> None:
        """So many more than there are."""
        ((held,),) = self.engine.conn.execute(_HELD, [self.user]).fetchall()
        self.engine.conn.execute(
            sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(
                sql.Identifier(self.user), held + more
            )
        )

    async def jobs(self, how_many: int) -> list[ClaimedJob]:
        await self.engine.storage.enqueue(mails(how_many))
        return await self.runner.take()

    async def work(self, kind: str, job: ClaimedJob, inside: Any = None) -> None:
        """`job`, as one of its kind; `inside` is an event to wait for."""
        guard = Guard(job.id, job.token)
        settlement = Settlement(guard, job.deduplicated, Delete())
        storage, session = self.engine.storage, self.runner.session

        def in_thread() -> None:
            with storage.transaction_sync(session, guard) as run:
                assert run is not None
                if inside is not None:
                    asyncio.run_coroutine_threadsafe(inside(), loop).result(30)
                run.finish(settlement)

        loop = asyncio.get_running_loop()
        if kind == "sync":
            await to_thread.run_sync(in_thread)
            return
        async with storage.transaction(session, guard) as run:
            assert run is not None
            if inside is not None:
                await inside()
            await run.finish(settlement)

    async def in_line(self, kind: str) -> None:
        """Return once a job of that kind waits for a connection."""
        shelf = self.links._shelf if kind == "sync" else self.links._async_shelf
        async with asyncio.timeout(30):
            while not shelf._line:  # noqa: ASYNC110 - it does not say that it waits
                await asyncio.sleep(0)


@pytest.fixture
async def bench(postgres: PostgresEngine, database_url: str) -> AsyncIterator[Bench]:
    with limited_user(postgres.conn, database_url, 20) as url:
        user = psycopg.conninfo.conninfo_to_dict(url)["user"]
        async with PostgresEngine.opened(url, conn_url=database_url, max_size=1) as engine:
            # else that one makes room, too
            engine.storage._claim_link._again_at = float("inf")  # type: ignore[attr-defined]
            yield Bench(engine, str(user))


async def at_once(bench: Bench, kind: str, jobs: list[ClaimedJob]) -> None:
    """All of them together, on a connection each."""
    barrier = asyncio.Barrier(len(jobs))
    async with asyncio.TaskGroup() as tasks:
        for job in jobs:
            tasks.create_task(bench.work(kind, job, barrier.wait))


@both
async def test_idle_connections_of_one_kind_make_room_for_the_other(
    bench: Bench, kind: str, other: str
) -> None:
    """Rule 16: else jobs of the other kind would be put off for a minute. As many as are needed, and no more."""
    jobs = await bench.jobs(6)
    bench.allow(3)
    await at_once(bench, kind, jobs[:3])
    await at_once(bench, other, jobs[3:5])
    await bench.work(kind, jobs[5])
    assert bench.engine.conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


@both
async def test_a_connection_that_is_given_back_makes_room_for_the_other_kind(
    bench: Bench, kind: str, other: str
) -> None:
    """Though others of its own kind wait for it, where the other kind has none."""
    jobs = await bench.jobs(3)
    bench.allow(1)
    ended: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def use(kind: str, job: ClaimedJob) -> None:
        await bench.work(kind, job)
        ended.append(kind)

    async def inside() -> None:
        for each, job in zip((kind, other), jobs[1:], strict=True):
            tasks.append(asyncio.create_task(use(each, job)))
            await bench.in_line(each)

    await bench.work(kind, jobs[0], inside)
    await asyncio.gather(*tasks)
    assert ended == [other, kind]


@both
async def test_a_lost_connection_makes_room_for_the_other_kind(
    bench: Bench, kind: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_links, "_WAIT_SECONDS", 600.0)
    jobs = await bench.jobs(2)
    bench.allow(1)
    tasks: list[asyncio.Task[None]] = []

    async def inside() -> None:
        tasks.append(asyncio.create_task(bench.work(other, jobs[1])))
        await bench.in_line(other)
        raise ZeroDivisionError

    shelf = bench.links._async_shelf if kind == "async" else bench.links._shelf
    monkeypatch.setattr(shelf, "put", shelf.lost)
    with pytest.raises(ZeroDivisionError):
        await bench.work(kind, jobs[0], inside)
    async with asyncio.timeout(30):
        await tasks[0]


async def test_who_is_stopped_passes_its_room_on(bench: Bench) -> None:
    """An asynchronous job that was just told that there is room for it."""
    jobs = await bench.jobs(3)
    bench.allow(1)
    tasks: list[asyncio.Task[None]] = []

    async def inside() -> None:
        tasks.append(asyncio.create_task(bench.work("async", jobs[1])))
        await bench.in_line("async")
        [waiting] = bench.links._async_shelf._line
        # in the moment that it is told, and before it goes on
        waiting.add_done_callback(lambda _: loop.call_soon_threadsafe(tasks[0].cancel))
        tasks.append(asyncio.create_task(bench.work("sync", jobs[2])))
        await bench.in_line("sync")

    loop = asyncio.get_running_loop()
    await bench.work("sync", jobs[0], inside)
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    async with asyncio.timeout(30):
        await tasks[1]
    assert (bench.links._shelf._in_use, bench.links._async_shelf._in_use) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_idle_connections_make_room_for_the_runners_own(bench: Bench, kind: str) -> None:
    """A runner whose session can't connect loses its jobs."""
    jobs = await bench.jobs(2)
    bench.allow(2)
    await at_once(bench, kind, jobs)
    listener = bench.engine.storage.listener()
    assert listener is not None
    await listener.open()
    second = bench.engine.storage.control()
    await to_thread.run_sync(second.open, "second", 15.0, ())
    second.abandon()
    await listener.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_idle_connections_make_room_for_the_pools(bench: Bench, kind: str) -> None:
    """Where somebody else has taken the place of one that it has lost."""
    jobs = await bench.jobs(1)
    bench.allow(1)
    await bench.work(kind, jobs[0])
    async with bench.engine.pool.connection() as conn:
        pid = conn.info.backend_pid
    bench.engine.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    bench.allow(0)
    with contextlib.suppress(StorageUnavailableError):  # that it is lost
        await bench.engine.storage.stats()
    assert await bench.engine.storage.stats() == []
