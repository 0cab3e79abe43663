"""Outcomes that can't be written: because somebody has locked a row, or because the database takes none. Rule 14."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Sequence

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from tests.conftest import AsyncPool
from tests.helpers.role_users import limited_user
from tests.helpers.running import PATIENCE, World, eventually, running
from workers import BackgroundJob, Discard
from workers.runtime import claimer, completer, demand
from workers.storage.base import Guard, Settled
from workers.storage.memory import MemoryStorage

COUNT = "SELECT count(*) FROM background_jobs"


class Note(BackgroundJob[World]):
    number: int

    async def run(self, ctx: World) -> None:
        if self.number == 0:
            ctx.signal("begun")
            await ctx.wait("go on")
        ctx.note(self.number)
        if self.number == 500:
            ctx.signal("last")


async def test_a_row_that_somebody_looks_at_holds_up_no_other_job(
    pool: AsyncPool, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """As in an open transaction of an administrator. What has run is not run again, shutdown or not."""
    world = World()
    async with running(pool, Note, context=world, grace=1.0):
        first = Note(number=0).enqueue(conn)
        await world.wait("begun")
        async with aconn.transaction():
            await aconn.execute("SELECT FROM background_jobs WHERE id = %s FOR UPDATE", [first])
            world.signal("go on")
            Note.enqueue_batch(conn, [Note(number=number) for number in range(1, 301)])
            await eventually(conn, COUNT, [(1,)])
        await eventually(conn, COUNT, [(0,)])
    assert Counter(world.seen) == Counter(range(301))


class Choked(MemoryStorage):
    """Gives jobs out, and takes no outcomes until `unblocked`."""

    def __init__(self) -> None:
        super().__init__()
        self.unblocked = asyncio.Event()

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Settled:
        await self.unblocked.wait()
        return await super().complete(session, guards, closed)


class Slow(MemoryStorage):
    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Settled:
        await asyncio.sleep(0.02)
        return await super().complete(session, guards, closed)


async def test_a_slow_disk_is_no_reason_to_complain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs wait for their outcomes to be written, and they are."""
    for module in (claimer, completer):
        monkeypatch.setattr(module, "MOST_UNWRITTEN", 20)
    storage, world = Slow(), World()
    await Note.enqueue_batch(storage, [Note(number=number) for number in range(1, 501)])
    async with running(storage, Note, context=world, max_batch=10):
        await world.wait("last")
    assert Counter(world.seen) == Counter(range(1, 501))
    assert "until they are fewer" not in caplog.text


async def test_nothing_is_claimed_while_outcomes_pile_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of those jobs would run again if the process died."""
    for module in (claimer, completer):
        monkeypatch.setattr(module, "MOST_UNWRITTEN", 20)
    for most in ("MAX_PREFETCH", "MOST_PREFETCH"):
        monkeypatch.setattr(demand, most, 10)
    storage, world = Choked(), World()
    await Note.enqueue_batch(storage, [Note(number=number) for number in range(1, 501)])
    async with running(storage, Note, context=world, max_batch=10):
        async with asyncio.timeout(PATIENCE):
            while "until they are fewer" not in caplog.text:  # noqa: ASYNC110 - the log tells nobody
                await asyncio.sleep(0)
        # one that is on its way, those that wait, and what had been claimed by then
        assert len(world.seen) <= 1 + 20 + 10 + 10
        storage.unblocked.set()
        await world.wait("last")
    assert Counter(world.seen) == Counter(range(1, 501))


async def test_what_the_store_lacks_is_no_fault_of_the_jobs(
    database_url: str, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A right that was forgotten, or taken away: their outcomes wait for whoever grants it, and nothing is buried."""
    right = "EXECUTE ON FUNCTION workers_complete"
    with limited_user(conn, database_url, 20) as url:
        name = sql.Identifier(str(conninfo_to_dict(url)["user"]))
        conn.execute(sql.SQL(f"REVOKE {right} FROM {{}}").format(name))
        world = World()
        async with running(url, Note, context=world):
            Note.enqueue_batch(conn, [Note(number=number) for number in range(1, 101)])
            await _until_told(caplog, "permission denied for function workers_complete")
            conn.execute(sql.SQL(f"GRANT {right} TO {{}}").format(name))
            await eventually(conn, COUNT, [(0,)])
        told = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert ["GRANT the user" in record.getMessage() for record in told] == [True]
        assert conn.execute("SELECT count(*) FROM dead_jobs").fetchone() == (0,)
    assert Counter(world.seen) == Counter(range(1, 101))


class Dies(BackgroundJob[World]):
    number: int

    async def run(self, ctx: World) -> None:
        raise Discard("no")


class Together(BackgroundJob[World]):
    transactional = True

    async def run(self, ctx: World) -> None:
        ctx.note("together")


async def test_one_row_for_which_the_store_lacks_something_holds_up_no_other(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Such as an application's own trigger that is wrong for one payload: it waits until that is mended."""
    conn.execute(
        """
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.data @> '{"number": 5}' THEN INSERT INTO nowhere VALUES (1); END IF;
            RETURN new;
        END $$;
        CREATE TRIGGER audit BEFORE INSERT ON dead_jobs FOR EACH ROW EXECUTE FUNCTION audit();
        """
    )
    async with running(pool, Dies, context=World(), grace=1.0):
        Dies.enqueue_batch(conn, [Dies(number=number) for number in range(10)])
        await eventually(conn, "SELECT data FROM background_jobs", [({"number": 5},)])
        conn.execute("DROP TRIGGER audit ON dead_jobs")
        await eventually(conn, COUNT, [(0,)])
    assert conn.execute("SELECT count(*) FROM dead_jobs").fetchone() == (10,)


async def test_what_can_not_be_written_is_told_of_once_and_not_too_early(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim that is to be forgotten meets it first: that is no job's outcome."""
    forgotten, world = "claims that are over can't be forgotten yet", World()
    conn.execute("ALTER FUNCTION workers_complete RENAME TO complete_later")
    async with running(pool, Note, Together, context=world):
        Together().enqueue(conn)
        await _until_told(caplog, forgotten)
        Note.enqueue_batch(conn, [Note(number=number) for number in range(1, 61)])
        await _until_told(caplog, "can't be written until somebody mends this")
        conn.execute("ALTER FUNCTION complete_later RENAME TO workers_complete")
        await eventually(conn, COUNT, [(0,)])
    assert world.seen.count("together") == 1


async def test_a_prepared_statement_that_somebody_has_taken_away(
    database_url: str, conn: psycopg.Connection
) -> None:
    """The driver believes that it is there: the connection is of no use any more."""
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False)
    async with pool, running(pool, Note, context=World()):
        for number in range(1, 16):  # the driver prepares what it has seen five times
            Note(number=number).enqueue(conn)
            await eventually(conn, COUNT, [(0,)])
        async with pool.connection() as borrowed:
            await borrowed.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
        Note(number=16).enqueue(conn)
        await eventually(conn, COUNT, [(0,)])


async def _until_told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while text not in caplog.text:  # noqa: ASYNC110 - a log can't be awaited
            await asyncio.sleep(0.01)
