"""Shutting down around jobs that do not end when they are told to. Rules 22 and 28."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import (
    PATIENCE,
    World,
    drain,
    eventually,
    make_runner,
)
from workers import BackgroundJob, RunnerError, RunnerHandle
from workers.runtime import crew, writing

ROWS = "SELECT retries, session_id IS NULL, last_error, run_at FROM background_jobs ORDER BY id"
UNTOUCHED = (0, True, None, None)
CLAIMED = (0, False, None, None)
SESSIONS = "SELECT count(*) FROM worker_sessions"


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


class Paused(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.signal("paused runs")
        await ctx.wait("go on")


class Brief(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("brief")


async def ended(handle: RunnerHandle) -> list[int]:
    async with asyncio.timeout(PATIENCE):
        return await handle.wait_for_shutdown()


async def test_a_job_that_swallows_the_interruption(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked twice; then its id is returned. It keeps its claim until it ends, and then goes back uncounted."""
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
    assert world.seen == ["asked", "asked", "done"]


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


class Lone(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.signal("lone runs")
        await ctx.wait("may end")


@pytest.mark.parametrize(("patience", "ends"), [(PATIENCE, False), (PATIENCE, True), (0.1, False)])
async def test_outcomes_are_written_before_a_job_is_left_behind(
    pool: AsyncPool,
    conn: psycopg.Connection,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
    ends: bool,
) -> None:
    """Who is told of it ends the process: what others have done would be done again. It is not waited for without end, and
    who `ends` meanwhile is not left behind."""
    monkeypatch.setattr(crew, "LAST_SECONDS", 0.1)
    monkeypatch.setattr(writing, "_FLUSH_SECONDS", patience)
    stubborn, paused = Stubborn().enqueue(conn), Paused().enqueue(conn)
    world = World()
    handle = make_runner(pool, Stubborn, Paused, context=world, grace=0.05).start()
    await world.wait("stubborn runs")
    await world.wait("paused runs")
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM background_jobs WHERE id = %s FOR UPDATE", [paused])
        world.signal("go on")
        handle.shutdown()
        async with asyncio.timeout(PATIENCE):
            while "would not stop" not in caplog.text:  # noqa: ASYNC110 - a log can't be awaited
                await asyncio.sleep(0.01)
        if ends:
            world.signal("may end")
            async with asyncio.timeout(PATIENCE):
                while "done" not in world.seen:  # noqa: ASYNC110 - noted, not signalled
                    await asyncio.sleep(0.01)
        elif patience < PATIENCE:
            assert await ended(handle) == [stubborn]
            assert "if this process ends now" in caplog.text
        else:
            assert not handle._supervisor.milestones.ended.done()
    assert await ended(handle) == ([] if ends else [stubborn])
    if not ends and patience == PATIENCE:
        assert conn.execute(ROWS).fetchall() == [CLAIMED]
    world.signal("may end")
    await eventually(conn, SESSIONS, [(0,)])


async def test_a_second_shutdown_hurries_outcomes_that_cannot_be_written(
    pool: AsyncPool,
    conn: psycopg.Connection,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The grace is for these as well; who calls twice does not want to wait for them."""
    monkeypatch.setattr(writing, "_WRITE_SECONDS", 0.1)
    Lone().enqueue(conn)
    world = World()
    handle = make_runner(pool, Lone, context=world, grace=1000.0).start()
    await world.wait("lone runs")
    async with asyncio.timeout(PATIENCE):
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE")
            world.signal("may end")
            handle.shutdown()
            while handle._supervisor._writing._last is None:  # noqa: ASYNC110 - nor can this
                await asyncio.sleep(0.01)
            handle.shutdown(grace=0.0)
            while "can't be written before the end" not in caplog.text:  # noqa: ASYNC110 - a log can't be awaited
                await asyncio.sleep(0.01)
        assert await handle.wait_for_shutdown() == []
    assert conn.execute(SESSIONS).fetchone() == (0,)


WAITING_CLAIM = """
SELECT count(*) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO worker_claims%' AND pid <> pg_backend_pid()
"""


async def test_a_claim_that_waits_for_a_lock_does_not_hold_up_the_end(
    pool: AsyncPool, conn: psycopg.Connection, database_url: str
) -> None:
    """Else the end would come with its statement_timeout of 30 s, however often shutdown is called."""
    handle = make_runner(pool, Lone, context=World()).start()
    await handle.ready()
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE")
        while conn.execute(WAITING_CLAIM).fetchall() == [(0,)]:
            conn.execute("SELECT pg_notify(workers_channel(), '')")  # somebody calls for a claim
            await asyncio.sleep(0.01)
        handle.shutdown()
        await eventually(conn, WAITING_CLAIM, [(0,)])
    assert await ended(handle) == []
    assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_an_outcome_that_is_cut_off_keeps_nothing_from_going_back(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that is under way has locked its row: the session ends after it."""
    monkeypatch.setattr(writing, "_WRITE_SECONDS", 0.1)
    conn.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); END'"
    )
    conn.execute(
        "CREATE TRIGGER dawdle BEFORE DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    Lone().enqueue(conn)
    world = World()
    world.signal("may end")
    handle = make_runner(pool, Lone, context=world, grace=0.0).start()
    await eventually(
        conn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'", [(1,)]
    )
    handle.shutdown()
    assert await ended(handle) == []
    assert conn.execute(SESSIONS).fetchone() == (0,)
    assert conn.execute(ROWS).fetchall() == [UNTOUCHED]


async def test_that_a_runner_died_is_known_although_a_job_would_not_end(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "LAST_SECONDS", 0.1)
    Stubborn().enqueue(conn)
    world = World()
    handle = make_runner(pool, Stubborn, context=world, grace=0.0).start()
    await world.wait("stubborn runs")
    handle._supervisor._die(ZeroDivisionError("some part of it"))
    with pytest.raises(RunnerError, match="some part of it"):
        await handle.wait_for_shutdown()
    world.signal("may end")
    await eventually(conn, SESSIONS, [(0,)])
