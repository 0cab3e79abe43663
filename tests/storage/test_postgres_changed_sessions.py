"""Encodings that can't hold every row, and settings that somebody changes on a pooled connection (rule 17)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.helpers.running import eventually
from tests.helpers.server import connection_url
from tests.storage.engines import PostgresEngine, ids, mail, mails
from workers.errors import StorageRejectedError, StorageUnavailableError
from workers.storage.postgres.checkout import translated
from workers.storage.postgres.storage import PostgresStorage

ENCODINGS = ["LATIN1", "SQL_ASCII", "EUC_JP"]
TEXT = '{"text": "€ 日本 é 💥"}'

#: What an application may do to a connection that it got from its pool.
CHANGES = [
    "SET search_path = pg_catalog",
    "SET default_transaction_read_only = on",
    "SET client_encoding = 'LATIN1'",
    "SET role = pg_monitor",
]


async def use(engine: PostgresEngine) -> None:
    """Everything that meets the text of a row."""
    storage, runner = engine.storage, engine.runner()
    await storage.enqueue([mail(data=TEXT), *mails(3)])
    jobs = await runner.take()
    assert TEXT in [job.data for job in jobs]
    assert await runner.complete(jobs) == set(ids(jobs))
    assert runner.maintain().alive
    listener = storage.listener()
    assert listener is not None
    await listener.open()
    await listener.close()
    runner.control.close()


async def encoding(engine: PostgresEngine) -> str:
    async with engine.pool.connection() as conn:
        return (conn.pgconn.parameter_status(b"client_encoding") or b"").decode()


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("how", ["dsn", "options", "environment"])
async def test_any_text_under_any_encoding(
    database_url: str, warm_server: None, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row with a character that it lacks must not stop the queue; and it is put back."""
    url = database_url
    if how == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", name)
    elif how == "dsn":
        url = connection_url(url, client_encoding=name)
    else:
        url = connection_url(url, options=f"-c client_encoding={name}")
    utf8 = connection_url(database_url, client_encoding="utf8")
    async with PostgresEngine.opened(url, conn_url=utf8, max_size=1) as engine:
        for _ in range(2):
            await use(engine)
            assert await encoding(engine) == name


async def test_a_pool_of_our_own_speaks_utf8(database_url: str, warm_server: None) -> None:
    """So that nothing has to be set at each statement."""
    storage = PostgresStorage(connection_url(database_url, client_encoding="LATIN1"))
    await storage.open()
    [job_id] = await storage.enqueue([mail(data=TEXT)])
    record = await storage.find(job_id or 0)
    assert record is not None
    assert record.data == TEXT
    async with storage._pool.connection() as conn:
        assert conn.info.encoding == "utf-8"
    await storage.close()


@pytest.mark.parametrize("change", CHANGES)
async def test_a_connection_that_was_changed_is_looked_at_again(
    database_url: str, warm_server: None, change: str
) -> None:
    """What is refused for that is done again, and what was set is put back."""
    shown = change.split()[1]
    async with PostgresEngine.opened(database_url, max_size=1) as engine:
        await engine.storage.enqueue(mails(1))
        async with engine.pool.connection() as conn:
            await conn.execute(change.encode())
            changed = await value(conn, shown)
        for _ in range(2):
            await engine.storage.enqueue(mails(1))
            await use(engine)
            engine.conn.execute("TRUNCATE background_jobs")
        async with engine.pool.connection() as conn:
            assert await value(conn, shown) == changed


async def value(conn: psycopg.AsyncConnection[Any], name: str) -> Any:
    cursor = await conn.execute("SELECT current_setting(%s)", [name])
    return await cursor.fetchone()


async def test_a_role_that_was_left_on_the_first_connection_is_not_that_of_all(
    database_url: str, warm_server: None
) -> None:
    async with PostgresEngine.opened(database_url, max_size=1) as engine:
        fresh = PostgresStorage(engine.pool)
        async with engine.pool.connection() as conn:
            await conn.execute("SET ROLE pg_monitor")
        with pytest.raises(StorageRejectedError, match="does not exist"):  # not for this role
            await fresh.stats()
        async with engine.pool.connection() as conn:
            await conn.execute("RESET ROLE")
            pid = conn.info.backend_pid
        engine.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(StorageUnavailableError):
            await fresh.stats()
        assert await fresh.stats() == []  # on a new connection
        await fresh.close()


async def test_a_timeout_that_was_set_later_fails_once_at_most(
    database_url: str, warm_server: None
) -> None:
    """Whether a statement that was broken off did anything is not for the engine to guess; the next one is well."""
    async with PostgresEngine.opened(database_url, max_size=1) as engine:
        storage: Any = engine.storage
        await storage.stats()
        async with engine.pool.connection() as conn:
            await conn.execute("SET statement_timeout = '50ms'")
        with pytest.raises(Exception, match="statement timeout"):
            await storage._checkout.fetch("SELECT pg_sleep(0.3)", {})
        await storage._checkout.fetch("SELECT pg_sleep(0.3)", {})


async def test_what_is_refused_for_itself_stays_refused(postgres: PostgresEngine) -> None:
    """It is not done twice."""
    storage: Any = postgres.storage
    done = []

    async def work(conn: psycopg.AsyncConnection[Any]) -> None:
        done.append(conn)
        await conn.execute("SELECT 1/0")

    with pytest.raises(StorageRejectedError, match="division by zero"):
        await storage._checkout.run(work)
    assert len(done) == 1


async def test_a_connection_to_a_server_that_turned_read_only_is_given_up(
    database_url: str, warm_server: None
) -> None:
    """The pool would lend it for an hour; a new one may lead to the server that took over."""
    async with PostgresEngine.opened(database_url, max_size=1) as engine:
        runner = engine.runner()
        await engine.storage.enqueue(mails(3))
        jobs = await runner.take()
        async with engine.pool.connection() as conn:
            stale = conn.info.backend_pid
        engine.conn.execute(
            f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF pg_backend_pid() = {stale} THEN
                    RAISE 'cannot execute DELETE in a read-only transaction' USING ERRCODE = 'read_only_sql_transaction';
                END IF;
                RETURN old;
            END $$;
            CREATE TRIGGER refuse BEFORE DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION refuse();
            """.encode()
        )
        with pytest.raises(StorageUnavailableError, match="read-only"):
            await runner.complete(jobs)
        assert await runner.complete(jobs) == set(ids(jobs))


async def test_connections_that_the_server_ended_because_they_were_idle(database_url: str) -> None:
    """All of the pool's: nothing was done on them, so that it is done on a new one, at once."""
    url = connection_url(
        database_url, application_name="idle", options="-cidle_session_timeout=100ms"
    )
    idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'idle'"
    async with PostgresEngine.opened(url, conn_url=database_url, min_size=3, max_size=3) as engine:
        await eventually(engine.conn, idle, [(0,)])
        assert await engine.storage.enqueue(mails(1)) == [1]


def test_a_connection_that_the_server_ends_is_no_refusal(conn: psycopg.Connection) -> None:
    """Whatever its reason, and under whichever class the driver files it: what was being written may be tried again."""
    if conn.info.server_version < 170000:
        pytest.skip("transaction_timeout is of PostgreSQL 17 and later")
    with pytest.raises(StorageUnavailableError, match="transaction timeout"), translated():
        conn.execute("SET transaction_timeout = '20ms'; SELECT pg_sleep(60)")
    assert conn.closed
