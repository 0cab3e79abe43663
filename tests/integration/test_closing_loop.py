"""Event loops that close around a runner that nobody shut down: everything goes back, and nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from tests.helpers.running import PATIENCE, World, eventually, make_runner
from workers import BackgroundJob
from workers.runtime import crew

ROWS = "SELECT retries, session_id IS NULL, crashes FROM background_jobs"
SESSIONS = "SELECT count(*) FROM worker_sessions"


class Hold(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.signal("runs")
        await asyncio.sleep(60)


class Brief(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("brief")
        ctx.signal("brief ran")


class HoldInThread(BackgroundJob[World]):
    def run(self, ctx: World) -> None:
        ctx.signal("thread runs")
        ctx.wait_in_thread("may end")
        ctx.note("thread done")


def in_a_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> threading.Thread:
    """asyncio.run(main()) in a thread: a loop that ends while the test's own goes on."""
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    return thread


async def finished(thread: threading.Thread) -> None:
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()


async def test_asyncio_run_ends_without_shutdown(
    database_url: str, conn: psycopg.Connection
) -> None:
    """Running jobs are interrupted and go back uncounted; the session ends in order."""
    Hold().enqueue(conn)
    world = World()

    async def main() -> None:
        handle = make_runner(database_url, Hold, context=world).start()
        await handle.ready()
        await world.wait("runs")

    await finished(in_a_loop(main))
    assert conn.execute(ROWS).fetchall() == [(0, True, 0)]
    assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_asyncio_run_ends_during_a_shutdown(
    database_url: str, conn: psycopg.Connection
) -> None:
    """The grace is over then; the order of the way down is kept."""
    Hold().enqueue(conn)
    world = World()

    async def main() -> None:
        handle = make_runner(database_url, Hold, context=world, grace=60).start()
        await world.wait("runs")
        handle.shutdown()
        await asyncio.sleep(0.05)

    await finished(in_a_loop(main))
    assert conn.execute(ROWS).fetchall() == [(0, True, 0)]
    assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_asyncio_run_ends_before_the_runner_is_ready(
    database_url: str, conn: psycopg.Connection
) -> None:
    """In the middle of connecting: no session is left behind."""

    async def main() -> None:
        make_runner(database_url, Hold, context=World()).start()
        await asyncio.sleep(0.01)

    for _ in range(3):
        await finished(in_a_loop(main))
    await eventually(conn, SESSIONS, [(0,)])


async def test_outcomes_are_written_when_the_loop_closes(
    database_url: str, conn: psycopg.Connection
) -> None:
    """What was done in the last moment is not done again, although the writer was cancelled with everything else."""
    Brief.enqueue_batch(conn, [Brief() for _ in range(300)])
    world = World()

    async def main() -> None:
        make_runner(database_url, Brief, context=world).start()
        await world.wait("brief ran")

    await finished(in_a_loop(main))
    left = conn.execute("SELECT count(*) FROM background_jobs WHERE session_id IS NULL").fetchone()
    assert left == (300 - len(world.seen),)
    assert conn.execute(SESSIONS).fetchone() == (0,)


@pytest.mark.parametrize("waits", [True, False])
async def test_a_job_in_a_thread_keeps_its_claim_while_the_loop_closes(
    database_url: str,
    conn: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,
) -> None:
    """Rule 22: the loop, like the process, ends after the thread; then the job's own outcome is written. It is told once."""
    monkeypatch.setattr(crew, "LAST_SECONDS", 0.1)
    job_id = HoldInThread().enqueue(conn)
    world = World()

    async def main() -> None:
        handle = make_runner(database_url, HoldInThread, context=world, grace=0.1).start()
        await world.wait("thread runs")
        if waits:
            handle.shutdown()
            assert await handle.wait_for_shutdown() == [job_id]
        world.signal("leaves")

    thread = in_a_loop(main)
    await world.wait("leaves")
    await asyncio.to_thread(thread.join, 0.3)
    assert conn.execute(ROWS).fetchall() == [(0, False, 0)]
    world.signal("may end")
    await finished(thread)
    assert world.seen == ["thread done"]
    assert conn.execute(ROWS).fetchall() == []
    assert conn.execute(SESSIONS).fetchone() == (0,)
    assert caplog.text.count("jobs that would not stop") == 1


async def test_a_handle_need_not_be_kept(database_url: str, conn: psycopg.Connection) -> None:
    """The runner holds on to its own task: the garbage collector does not take it."""
    world = World()

    async def main() -> None:
        await make_runner(database_url, Brief, context=world, poll=0.05).start().ready()
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0.05)
        Brief().enqueue(conn)
        gc.collect()
        await world.wait("brief ran")

    await finished(in_a_loop(main))
    assert world.seen == ["brief"]


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_a_loop_that_is_closed_without_a_word_leaves_the_session_to_a_thread(
    database_url: str, conn: psycopg.Connection
) -> None:
    """Rule 22: what runs in a thread keeps its claim until it has ended, though nobody will write its outcome."""
    HoldInThread().enqueue(conn)
    world = World()

    def main() -> None:
        loop = asyncio.new_event_loop()

        async def start() -> None:
            make_runner(database_url, HoldInThread, context=world, lease=1).start()
            await world.wait("thread runs")

        loop.run_until_complete(start())
        loop.close()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    await finished(thread)
    until = conn.execute("SELECT lease_until FROM worker_sessions").fetchone()
    assert until is not None
    later = (
        f"SELECT lease_until > '{until[0]}'::timestamptz + interval '1 second' FROM worker_sessions"
    )
    await eventually(conn, later, [(True,)])
    assert conn.execute(ROWS).fetchall() == [(0, False, 0)]
    world.signal("may end")
    await eventually(conn, SESSIONS, [(0,)])
    assert conn.execute(ROWS).fetchall() == [(0, True, 0)]
