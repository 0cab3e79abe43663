"""How a runner learns that there is work: notifications, and polling when there are none. Rule 27."""

from __future__ import annotations

import logging
import time

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, eventually, listening_to, running
from workers import BackgroundJob, StorageUnavailableError
from workers.runtime import listening, session
from workers.storage.postgres import hints
from workers.storage.postgres.listener import PostgresListener
from workers.telemetry import ListenerStateChanged

LISTENERS = """
    SELECT pg_terminate_backend(activity.pid) FROM pg_stat_activity AS activity
    WHERE activity.query LIKE 'LISTEN "workers_%' AND activity.query LIKE '%' || workers_channel() || '%'
"""
SOON = 2.0  # much less than a minute, on a busy machine


class Note(BackgroundJob[World]):
    name: str

    async def run(self, ctx: World) -> None:
        ctx.signal(self.name)


class Other(BackgroundJob[World]):
    queue = "other"

    async def run(self, ctx: World) -> None:
        ctx.signal("other")


@pytest.fixture
def info_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "workers")
    return caplog


async def soon(world: World, name: str) -> None:
    began = time.monotonic()
    await world.wait(name)
    assert time.monotonic() - began < SOON


async def test_a_committed_job_starts_at_once(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """With a poll a minute: the commit wakes the runner, not the statement; a rollback wakes nobody."""
    world = World()
    with listening_to(ListenerStateChanged) as states:
        async with running(pool, Note, Other, context=world, poll=60):
            await states.wait_for(lambda state: state.listening)
            Note(name="autocommit").enqueue(conn)
            await soon(world, "autocommit")
            with conn.transaction():
                Note(name="committed").enqueue(conn)
                with psycopg.connect(conn.info.dsn, options=conn.info.options) as another:
                    Note(name="meanwhile").enqueue(another)
                await soon(world, "meanwhile")
                assert not world.happened("committed")
            await soon(world, "committed")
            with conn.transaction(force_rollback=True):
                Note(name="rolled back").enqueue(conn)
            Other().enqueue(conn)
            await soon(world, "other")
            Note.enqueue_batch(conn, [Note(name=f"batch {number}") for number in range(3)])
            await soon(world, "batch 2")
            with conn.cursor() as cursor:
                cursor.execute("SELECT workers_enqueue('note', '{\"name\": \"sql\"}', 'default')")
            await soon(world, "sql")
            assert not world.happened("rolled back")


async def test_poll_only(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """listen=False: no connection listens, jobs are found by polling."""
    world = World()
    # the backend that a test before this one listened with, in the same schema, may still be ending
    await eventually(conn, LISTENERS, [])
    async with running(pool, Note, context=world, poll=0.1, listen=False):
        Note(name="polled").enqueue(conn)
        await soon(world, "polled")
        assert conn.execute(LISTENERS.encode()).fetchall() == []


async def test_a_listener_that_is_killed_comes_back(
    pool: AsyncPool, conn: psycopg.Connection, info_log: pytest.LogCaptureFixture
) -> None:
    """Meanwhile polling goes on, and is named; then notifications wake again."""
    world = World()
    with listening_to(ListenerStateChanged) as states:
        async with running(pool, Note, context=world, poll=60) as handle:
            await states.wait_for(lambda state: state.listening)
            assert conn.execute(LISTENERS.encode()).fetchall() == [(True,)]
            await states.wait_for(lambda state: not state.listening)
            Note(name="missed").enqueue(conn)
            await states.wait_for(lambda state: state.listening, count=2)
            # what was announced while nobody listened is looked for
            await soon(world, "missed")
            Note(name="heard").enqueue(conn)
            await soon(world, "heard")
        assert {state.session for state in states} == {handle.session}
    assert [state.listening for state in states] == [True, False, True]
    texts = [record.getMessage() for record in info_log.records]
    assert any(text.startswith("polling only: ") for text in texts)
    assert "listening for notifications again" in texts


async def test_polling_goes_on_without_a_listener(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can't be opened at all costs latency only; it is tried again, and named once."""

    async def refuse(self: object) -> None:
        raise StorageUnavailableError("no more connections")

    monkeypatch.setattr(PostgresListener, "open", refuse)
    world = World()
    with listening_to(ListenerStateChanged) as states:
        async with running(pool, Note, context=world, poll=0.1):
            await states.wait_for(lambda state: not state.listening, count=2)
            Note(name="polled").enqueue(conn)
            await soon(world, "polled")


async def test_a_deaf_listener_is_noticed(
    pool: AsyncPool,
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    info_log: pytest.LogCaptureFixture,
) -> None:
    """A connection that is there but delivers nothing: the runner writes to itself, and opens another one."""
    monkeypatch.setattr(session, "PROBE_EVERY", 0.1)
    monkeypatch.setattr(listening, "_HEARD_WITHIN", 0.3)
    open_listener, opened = PostgresListener.open, 0

    async def deaf_at_first(self: PostgresListener) -> None:
        nonlocal opened
        opened += 1
        await open_listener(self)
        if opened == 1 and self._conn is not None:
            await self._conn.execute("UNLISTEN *")

    monkeypatch.setattr(PostgresListener, "open", deaf_at_first)
    world = World()
    with listening_to(ListenerStateChanged) as states:
        async with running(pool, Note, context=world, poll=60, lease=1):
            await states.wait_for(lambda state: state.listening, count=2)
            Note(name="heard").enqueue(conn)
            await soon(world, "heard")
    assert [state.listening for state in states] == [True, False, True]
    assert "polling only: notifications do not arrive" in info_log.text


def test_another_schema_wakes_nobody(conn: psycopg.Connection) -> None:
    """NOTIFY belongs to the database: the channel carries the schema's name."""
    query = "SELECT workers_channel() = 'workers_' || left(md5(current_schema()), 16)"
    assert conn.execute(query).fetchone() == (True,)


async def test_a_late_commit_is_run_on_its_notification(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 11: it lies behind the hint, and nobody looks there again for a minute."""
    monkeypatch.setattr(hints, "THOROUGH_SHARE", 1_000_000)
    world = World()
    with (
        listening_to(ListenerStateChanged) as states,
        psycopg.connect(conn.info.dsn, options=conn.info.options) as late,
    ):
        async with running(pool, Note, context=world, poll=60):
            await states.wait_for(lambda state: state.listening)
            Note(name="first").enqueue(conn)
            await soon(world, "first")
            Note(name="late").enqueue(late)
            Note(name="second").enqueue(conn)
            await soon(world, "second")
            late.commit()
            await soon(world, "late")
