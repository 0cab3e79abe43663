"""A server that has no room left for notifications: somebody listens, and has been in a transaction for long.

That may be anybody, as the server has one queue for all its databases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from tests.helpers.own_server import NoOwnServerError, OwnServer, own_server
from tests.helpers.running import World, eventually, running
from tests.storage.engines import PostgresEngine
from workers import BackgroundJob, Snooze, current_job, migrate
from workers.errors import StorageUnavailableError
from workers.storage.postgres.checkout import translated

JOBS = "SELECT job_type, session_id IS NULL, crashes, retries FROM background_jobs"
#: Pages of 8 KB.
PAGES = 64


def room(conn: psycopg.Connection) -> bool:
    try:
        conn.execute("NOTIFY elsewhere")
    except psycopg.errors.ProgramLimitExceeded:
        return False
    return True


class Again(BackgroundJob[World]):
    """Goes back at once, the first time."""

    async def run(self, ctx: World) -> None:
        ctx.note("again")
        if ctx.seen.count("again") == 1:
            raise Snooze(0)


class Fails(BackgroundJob[World]):
    backoff = 0.0

    async def run(self, ctx: World) -> None:
        ctx.note("fails")
        if current_job().attempt == 1:
            raise ValueError("the first time")


class Later(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("later")


class Stays(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.signal("stays")
        await asyncio.Event().wait()


@pytest.fixture(scope="module")
def full() -> Iterator[OwnServer]:
    """Such a server."""
    try:
        with own_server() as server, contextlib.ExitStack() as stack:
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute(f"ALTER SYSTEM SET max_notify_queue_pages = {PAGES}".encode())
            server.stop()
            server.start()
            migrate(server.dsn)
            listener = stack.enter_context(psycopg.connect(server.dsn, autocommit=True))
            listener.execute("LISTEN somewhere")
            listener.execute("BEGIN")
            flood = stack.enter_context(psycopg.connect(server.dsn, autocommit=True))
            fill = "SELECT pg_notify('elsewhere', n || repeat('x', 7900)) FROM generate_series(1, 100) AS n"
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                flood.execute(fill)
            while room(flood):
                pass
            yield server
    except NoOwnServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def conn(full: OwnServer) -> Iterator[psycopg.Connection]:
    quiet = "-cworkers.notify=off"  # a producer that notifies can't commit
    with psycopg.connect(full.dsn, autocommit=True, options=quiet) as conn:
        yield conn


async def test_jobs_end_and_go_back_and_come_due(
    full: OwnServer, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 27: a notification is a help, and nothing that a job depends on."""
    for job in (Again(), Fails()):
        job.enqueue(conn)
    Later().enqueue(conn, delay=0.5)
    Stays().enqueue(conn)
    world = World()
    async with running(full.dsn, Again, Fails, Later, Stays, context=world, poll=0.1) as handle:
        await world.wait("stays")
        await eventually(conn, JOBS, [("stays", False, 0, 0)])
        handle.shutdown(grace=0)
    assert sorted(world.seen) == ["again", "again", "fails", "fails", "later"]
    assert conn.execute(JOBS).fetchall() == [("stays", True, 0, 0)]
    assert conn.execute("SELECT count(*) FROM worker_sessions").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM dead_jobs").fetchone() == (0,)
    assert caplog.text.count("no room left for notifications") == 1
    assert "connection is lost" not in caplog.text


async def test_a_probe_that_was_not_sent_is_not_waited_for(full: OwnServer) -> None:
    """Rule 27: the listener would count as deaf."""
    async with PostgresEngine.opened(full.dsn) as engine:
        runner = engine.runner()
        assert not runner.maintain(probe="probe 1").probed, "it finds out"
        assert not runner.maintain(probe="probe 1").probed, "it knows"


def test_it_may_pass() -> None:
    """It is not said of an outcome, either, that the store refuses it for good: the job would be buried."""
    full = psycopg.errors.ProgramLimitExceeded("too many notifications in the NOTIFY queue")
    with (
        pytest.raises(StorageUnavailableError, match="notifications can't be sent now"),
        translated(),
    ):
        raise full
