"""Starting, failing to start, and dying: who is told, and when."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from tests.conftest import AsyncPool
from tests.helpers.role_users import limited_user
from tests.helpers.running import PATIENCE, World, drain, eventually, make_runner, running
from tests.helpers.server import connection_url
from workers import BackgroundJob, MigrationError, RunnerError, StorageError, migrations
from workers.runtime.claimer import Claimer
from workers.runtime.completer import Completer
from workers.runtime.executor import Executor
from workers.runtime.session import SessionKeeper
from workers.storage.postgres import connector
from workers.storage.postgres.session import PostgresControl

ROWS = "SELECT retries, session_id IS NULL FROM background_jobs"
SESSIONS = "SELECT count(*) FROM worker_sessions"


class Note(BackgroundJob[World]):
    queue = "notes"

    async def run(self, ctx: World) -> None:
        ctx.note("ran")
        ctx.signal("ran")


class Hold(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.signal("runs")
        await ctx.wait("may end")
        ctx.note("done")


async def test_missing_tables(raw_database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """ready(), wait_for_shutdown() and `async with` raise what to do about it; the log has it for those who ask nobody."""
    handle = make_runner(raw_database_url, Note).start()
    with pytest.raises(MigrationError, match="workers migrate"):
        await handle.ready()
    with pytest.raises(MigrationError, match="workers migrate"):
        await handle.wait_for_shutdown()
    with pytest.raises(MigrationError, match="workers migrate"):
        async with running(raw_database_url, Note):
            pytest.fail("it is not ready")
    assert "the runner can't start" in caplog.text


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has a migration that the database has not."""
    known = [*migrations._load(), migrations.Migration(9999, "9999_next", b"")]
    monkeypatch.setattr(migrations, "_load", lambda: known)


async def test_older_tables(
    database_url: str, request: pytest.FixtureRequest, conn: psycopg.Connection
) -> None:
    """A runner does not begin: it might have run a job when it notices that it can't write what became of it."""
    world = World()
    Note().enqueue(conn)
    request.getfixturevalue("next_version")
    handle = make_runner(database_url, Note).start()
    with pytest.raises(MigrationError, match="lacks 9999_next: run `workers migrate`"):
        await handle.ready()
    with pytest.raises(MigrationError, match="lacks 9999_next"):
        await handle.wait_for_shutdown()
    migrations.migrate(database_url)
    await drain(database_url, Note, context=world)
    assert world.seen == ["ran"]
    conn.execute("DELETE FROM workers_migrations WHERE version = 9999")


async def test_tables_of_which_nobody_says_how_old_they_are(
    database_url: str, conn: psycopg.Connection, request: pytest.FixtureRequest
) -> None:
    world = World()
    Note().enqueue(conn)
    with limited_user(conn, database_url, 20) as url:
        conn.execute(f"REVOKE ALL ON workers_migrations FROM {conninfo_to_dict(url)['user']}")
        request.getfixturevalue("next_version")
        await drain(url, Note, context=world)
    assert world.seen == ["ran"]


async def test_a_bad_dsn(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody listens there: it is said soon, not after a pool's patience."""
    handle = make_runner("postgresql://127.0.0.1:1/nowhere?connect_timeout=2", Note).start()
    with pytest.raises(StorageError):
        async with asyncio.timeout(10):
            await handle.ready()
    with pytest.raises(StorageError):
        await handle.wait_for_shutdown()


async def test_the_session_can_not_be_opened(
    pool: AsyncPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the session thread is a start-up error like any other."""
    caplog.set_level(logging.INFO, "workers")

    def refuse(self: PostgresControl, *args: Any) -> int:
        raise StorageError("no connection is left")

    monkeypatch.setattr(PostgresControl, "open", refuse)
    handle = make_runner(pool, Note).start()
    with pytest.raises(StorageError, match="no connection is left"):
        await handle.ready()
    with pytest.raises(StorageError, match="no connection is left"):
        await handle.wait_for_shutdown()
    assert "runner stopped" not in caplog.text, "it has never run"


async def test_a_session_that_is_reaped_while_the_loop_stands_still_at_the_start(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 19: the loop learns of its first session and of the second one in one turn, and goes on with the second."""
    start, post = SessionKeeper.start, SessionKeeper._post
    opened, replaced = threading.Event(), threading.Event()

    def note(self: SessionKeeper, callback: Any, *args: Any) -> None:
        post(self, callback, *args)
        if callback.__name__ == "renewed":
            opened.set()
        elif callback.__name__ == "session_replaced":
            replaced.set()

    def start_and_stand_still(self: SessionKeeper) -> None:
        start(self)
        assert opened.wait(PATIENCE)
        conn.execute("UPDATE worker_sessions SET alive = false")
        assert replaced.wait(PATIENCE)

    monkeypatch.setattr(SessionKeeper, "_post", note)
    monkeypatch.setattr(SessionKeeper, "start", start_and_stand_still)
    world = World()
    async with running(pool, Note, context=world):
        Note().enqueue(conn)
        await world.wait("ran")


def break_claimer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Claimer, *args: Any, **kwargs: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(Claimer, "claim", broken)


def break_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Executor.start

    def broken(self: Executor, attempt: Any) -> Any:
        if attempt.job.job_type == "note":
            raise ZeroDivisionError
        return start(self, attempt)

    monkeypatch.setattr(Executor, "start", broken)


def break_completer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Completer, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Completer, "_complete", broken)


def break_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PostgresControl, request: Any, **more: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(PostgresControl, "maintain", broken)


@pytest.mark.parametrize("part", [break_claimer, break_worker, break_completer, break_session])
async def test_a_runner_that_dies_later(
    pool: AsyncPool,
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: Any,
) -> None:
    """Whatever part of it fails: critical in the log at once, RunnerError with the cause at the end, jobs go back."""
    caplog.set_level(logging.CRITICAL, "workers")
    world = World()
    Hold().enqueue(conn)
    handle = make_runner(pool, Hold, Note, context=world, grace=60, poll=0.05).start()
    await handle.ready()
    await world.wait("runs")
    part(monkeypatch)
    Note().enqueue(conn)
    async with asyncio.timeout(PATIENCE):
        while "the runner dies" not in caplog.text:  # noqa: ASYNC110 - a log can't be awaited
            await asyncio.sleep(0.01)
    world.signal("may end")
    with pytest.raises(RunnerError, match="ZeroDivisionError") as caught:
        async with asyncio.timeout(PATIENCE):
            await handle.wait_for_shutdown()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    monkeypatch.undo()
    if part is not break_session:  # its jobs are found by the next sweeps
        await drain(pool, Hold, Note, context=world)
        await eventually(conn, ROWS, [])
        assert conn.execute(SESSIONS).fetchone() == (0,)


@pytest.mark.parametrize("least", [0, 1])
async def test_an_unopened_pool_is_opened_and_closed(
    database_url: str, conn: psycopg.Connection, least: int
) -> None:
    """Rule 17; an open one is left open. (With no least number it makes no connection before it is asked for one.)"""
    unopened = AsyncConnectionPool(database_url, min_size=least, max_size=2, open=False)
    Note().enqueue(conn)
    world = World()
    async with asyncio.timeout(PATIENCE), running(unopened, Note, context=world):
        await world.wait("ran")
        states = [unopened.closed]
    assert [*states, unopened.closed] == [False, True]
    async with AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False) as opened:
        async with running(opened, Note, context=world):
            pass
        assert not opened.closed


async def test_two_runners_at_once(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """On one pool, in one loop: each has a session of its own, and they share the queue."""
    Note.enqueue_batch(conn, [Note() for _ in range(500)])
    world = World()
    runners = [running(pool, Note, context=world) for _ in range(2)]
    async with runners[0] as first, runners[1] as second:
        assert first.session != second.session
        await eventually(conn, ROWS, [])
    assert len(world.seen) == 500


async def test_two_runners_that_open_a_pool_together(
    database_url: str, conn: psycopg.Connection
) -> None:
    """Neither has to wait until it is full, which the driver lets only one do."""
    unopened = AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False)
    handles = [make_runner(unopened, Note).start() for _ in range(2)]
    await asyncio.gather(*(handle.ready() for handle in handles))
    for handle in handles:
        handle.shutdown()
        await handle.wait_for_shutdown()
    assert unopened.closed


async def test_a_runner_that_starts_on_a_pool_in_use(
    database_url: str, conn: psycopg.Connection
) -> None:
    """It does not wait for all of its connections, nor close it under the others."""
    unopened = AsyncConnectionPool(database_url, min_size=2, max_size=2, open=False)
    world = World()
    async with running(unopened, Hold, context=world), unopened.connection():
        async with running(unopened, Note, context=world):
            Note().enqueue(conn)
            await world.wait("ran")
        assert not unopened.closed
    assert unopened.closed


async def test_a_host_that_does_not_answer_is_passed_by(
    database_url: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pool, too, that is made from a DSN: the driver's own patience is two minutes."""
    monkeypatch.setattr(connector, "_CONNECT_TIMEOUT", {"connect_timeout": 2})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        named = conninfo_to_dict(database_url)
        url = connection_url(
            database_url,
            host=f"127.0.0.1,{named['host']}",
            port=f"{silent.getsockname()[1]},{named.get('port', 5432)}",
        )
        Note().enqueue(conn)
        world = World()
        async with asyncio.timeout(25), running(url, Note, context=world):
            await world.wait("ran")


async def test_a_pool_of_one_connection_serves_many_running_jobs(
    database_url: str, conn: psycopg.Connection
) -> None:
    """Rule 1: no connection is held while a job runs."""
    Hold.enqueue_batch(conn, [Hold() for _ in range(50)])
    world = World()
    small = AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False)
    async with small, running(small, Hold, Note, context=world, workers=50):
        await eventually(conn, ROWS, [(0, False)] * 50)
        Note().enqueue(conn)
        await world.wait("ran")
        async with small.connection() as borrowed:
            await borrowed.execute("SELECT 1")
        world.signal("may end")
        await eventually(conn, ROWS, [])
    assert world.seen.count("done") == 50


async def test_check_for_failed_jobs_after_the_pool_was_closed(
    database_url: str, conn: psycopg.Connection
) -> None:
    """The runner closed the pool that it had opened; the question can still be asked."""
    Note().enqueue(conn)
    runner = make_runner(database_url, Note, context=World()).shutdown_when_queue_empty()
    assert await runner.run() == []
    await runner.check_for_failed_jobs()
