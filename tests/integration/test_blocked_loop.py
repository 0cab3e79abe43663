"""A job that blocks the event loop: it is named, and costs the runner neither its lease nor its jobs. Rule 23, fault 21."""

from __future__ import annotations

import asyncio
import logging
import threading

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import PATIENCE, World, drain, eventually, make_runner
from workers import BackgroundJob
from workers.runtime import loop_watch

ROWS = "SELECT count(*), sum(retries), sum(crashes) FROM background_jobs"


LEASE_UNTIL = "SELECT lease_until FROM worker_sessions"


class Block(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.signal("blocks")
        ctx.wait_in_thread("may end")  # and the loop with it
        ctx.note("done")


async def test_a_loop_that_stands_still_is_named_early(
    database_url: str,
    conn: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long before the limit at which it is given up, once each time, and without telling the handler."""
    caplog.set_level(logging.WARNING, "workers")
    monkeypatch.setattr(loop_watch, "STALL_WARNING", 0.2)
    world = World()

    def on_stall(seconds: float, stack: str) -> None:
        pytest.fail("the limit is a minute")

    async def main() -> None:
        async with make_runner(database_url, Block, context=world, lease=1).start(
            on_stall=on_stall
        ):
            await world.wait("over")

    Block().enqueue(conn)
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    await world.wait("blocks")
    async with asyncio.timeout(PATIENCE):
        while "the event loop has not run for" not in caplog.text:  # noqa: ASYNC110 - a log can't be awaited
            await asyncio.sleep(0.01)
    world.signal("may end")
    world.signal("over")
    await asyncio.to_thread(thread.join, PATIENCE)
    (record,) = [item for item in caplog.records if "has not run" in item.getMessage()]
    assert record.levelname == "WARNING"
    assert "loop_stall_limit is 60 s" in record.getMessage()
    assert "wait_in_thread" in record.getMessage()


async def test_a_job_that_blocks_the_loop(
    pool: AsyncPool,
    database_url: str,
    conn: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session thread keeps the lease, and names the job and the line it stands at; a handler may be told too."""
    caplog.set_level(logging.ERROR, "workers")
    world, other = World(), World()
    stalls: list[tuple[float, str]] = []

    def on_stall(seconds: float, stack: str) -> None:
        stalls.append((seconds, stack))
        world.signal("stalled")
        raise ZeroDivisionError  # a handler that fails harms nobody

    async def main() -> None:
        runner = make_runner(database_url, Block, context=world, lease=1, loop_stall_limit=0.5)
        async with runner.start(on_stall=on_stall) as handle:
            await world.wait("over")
            handle.shutdown()

    job_id = Block().enqueue(conn)
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    await world.wait("blocks")
    await world.wait("stalled")
    until = conn.execute("SELECT lease_until FROM worker_sessions").fetchone()
    assert until is not None
    # housekeeping goes on while the loop stands still
    await eventually(conn, f"SELECT lease_until > '{until[0]}' FROM worker_sessions", [(True,)])
    await drain(pool, Block, context=other)
    assert conn.execute(ROWS).fetchone() == (1, 0, 0)
    world.signal("may end")
    await eventually(conn, ROWS, [(0, None, None)])
    world.signal("over")
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()
    assert world.seen.count("done") == 1
    assert other.seen == []
    ((seconds, stack),) = stalls
    assert seconds > 0.5
    assert "wait_in_thread" in stack
    assert f"Running: {job_id} (block)" in caplog.text
    assert "wait_in_thread" in caplog.text
    assert "the handler of a stalled event loop failed" in caplog.text


class Chat(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        logging.getLogger("workers.chat").error("hello")
        ctx.note("done")


class Hangs(logging.Handler):
    """Like one that writes to a pipe which nobody reads."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.signal("blocks")
        self.world.wait_in_thread("may end")
        self.world.note(record.getMessage().partition(";")[0])


async def test_a_log_handler_that_blocks_the_loop(
    database_url: str, conn: psycopg.Connection
) -> None:
    """It holds its lock, and whoever else logs waits for that, but not the thread that keeps the lease."""
    world = World()
    handler = Hangs(world)
    handler.setLevel(logging.ERROR)

    async def main() -> None:
        runner = make_runner(database_url, Chat, context=world, lease=1, loop_stall_limit=0.5)
        async with runner.start(on_stall=lambda *_: world.signal("stalled")) as handle:
            await world.wait("over")
            handle.shutdown()

    Chat().enqueue(conn)
    logging.getLogger("workers").addHandler(handler)
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    try:
        thread.start()
        await world.wait("blocks")
        await world.wait("stalled")
        for _ in range(3):  # housekeeping goes on
            until = conn.execute(LEASE_UNTIL).fetchone()
            assert until is not None
            await eventually(
                conn, f"SELECT alive AND lease_until > '{until[0]}' FROM worker_sessions", [(True,)]
            )
        assert conn.execute(ROWS).fetchone() == (1, 0, 0)
        assert world.seen == []
        world.signal("may end")
        await eventually(conn, ROWS, [(0, None, None)])
        world.signal("over")
        await asyncio.to_thread(thread.join, PATIENCE)
    finally:
        world.signal("may end")
        logging.getLogger("workers").removeHandler(handler)
    assert not thread.is_alive()
    assert world.seen[0] == "hello"
    assert any(said.startswith("the event loop has not run for") for said in world.seen)
