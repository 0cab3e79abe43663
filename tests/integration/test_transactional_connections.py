"""Transactional jobs and their connections, deadlines and outages. Rule 16."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from tests.conftest import AsyncPool
from tests.helpers.effects import EFFECTS, INSERT, KINDS, Effect
from tests.helpers.running import World, drain, eventually, running
from workers import BackgroundJob, current_job

ROWS = "SELECT retries, session_id IS NULL, last_error FROM background_jobs"
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def effects(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE effects (job bigint)")


@both
async def test_connections_are_their_own(
    database_url: str, conn: psycopg.Connection, kind: type[Effect]
) -> None:
    """A pool of one serves several that run at once: it is neither theirs nor kept waiting by them; then they are reused."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as small:
        kind.enqueue_batch(conn, [kind(then="wait") for _ in range(4)])
        world = World()
        async with running(small, kind, context=world, workers=4):
            await eventually(conn, ROWS, [(0, False, None)] * 4)
            async with asyncio.timeout(10):
                while len(world.seen) < 4:  # noqa: ASYNC110 - the jobs say it one by one
                    await asyncio.sleep(0.01)
            async with small.connection() as borrowed:
                assert borrowed.info.backend_pid not in world.seen
            world.signal("may end")
            await eventually(conn, ROWS, [])
            kind.enqueue_batch(conn, [kind() for _ in range(20)])
            await eventually(conn, "SELECT count(*) FROM effects", [(24,)])
    assert len(set(world.seen)) == 4


async def test_a_job_that_ran_out_of_time_commits_nothing(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Neither one that swallowed its cancellation nor one in a thread, which ends by itself."""

    class Late(BackgroundJob[World]):
        transactional = True
        timeout = 1.0  # that includes making its connection

        async def run(self, ctx: World) -> None:
            await current_job().connection.execute(INSERT, [1])
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)

    class LateInThread(BackgroundJob[World]):
        transactional = True
        timeout = 1.0  # that includes making its connection

        def run(self, ctx: World) -> None:
            current_job().connection.execute(b"SELECT pg_sleep(1.2)")
            current_job().connection.execute(INSERT, [2])

    Late().enqueue(conn)
    LateInThread().enqueue(conn)
    await drain(pool, Late, LateInThread)
    assert conn.execute(EFFECTS).fetchall() == []
    rows = conn.execute(ROWS).fetchall()
    assert [(retries, free) for retries, free, _ in rows] == [(1, True)] * 2
    assert all(error.startswith("timed out after 1 s (ended") for _, _, error in rows)


async def test_no_transaction_can_be_begun(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt is counted: the job's code never began. It is tried again a little later."""
    from workers.storage.postgres.transactions import TransactionConnections

    async def refuse(self: object) -> None:
        raise psycopg.OperationalError("too many connections")

    connect = TransactionConnections.__init__

    def without(self: TransactionConnections, sync: Any, _: Any, **options: Any) -> None:
        connect(self, sync, lambda: refuse(self), **options)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(TransactionConnections, "__init__", without)
    Effect().enqueue(conn)
    await drain(pool, Effect, context=World())
    query = "SELECT retries, run_at BETWEEN now() AND now() + interval '6 s' FROM background_jobs"
    assert conn.execute(query).fetchall() == [(0, True)]
