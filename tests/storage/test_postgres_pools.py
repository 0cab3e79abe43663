"""Pools that belong to somebody else: their settings do no harm here, and are as they were afterwards (rule 17)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Self

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.array import ListBinaryDumper, ListDumper
from psycopg.types.json import JsonbDumper
from psycopg_pool import AsyncConnectionPool

from tests.helpers.role_users import opened_users
from tests.helpers.running import PATIENCE
from tests.helpers.server import connection_url
from tests.storage.engines import PostgresEngine, ids, mail, mails
from workers import migrate
from workers.errors import (
    ConfigurationError,
    MigrationError,
    StorageRejectedError,
    StorageUnavailableError,
)
from workers.job import JobState
from workers.lifecycle import Archive, Bury, Release, Retry
from workers.storage import open_storage
from workers.storage.base import Guard, Settlement
from workers.storage.postgres import fitting
from workers.storage.postgres import lender as lender_module
from workers.storage.postgres.lender import Lender
from workers.storage.postgres.storage import PostgresStorage

#: Settings of a session that would do harm to statements that know nothing of them.
SESSIONS: dict[str, dict[str, str]] = {
    "plain": {},
    "short timeouts": {"statement_timeout": "100ms", "lock_timeout": "50ms"},
    "short idle timeouts": {
        "idle_in_transaction_session_timeout": "50ms",
        "idle_session_timeout": "0",
    },
    "serializable": {"default_transaction_isolation": "serializable"},
    "read only": {"default_transaction_read_only": "on"},
    "another planner": {
        "enable_indexscan": "off",
        "plan_cache_mode": "force_generic_plan",
        "jit_above_cost": "0",
    },
    "another place": {
        "timezone": "Asia/Tokyo",
        "datestyle": "German",
        "intervalstyle": "sql_standard",
    },
}

#: Keyword arguments of connections, and pool settings.
KINDS: dict[str, dict[str, Any]] = {
    "one connection": {"max_size": 1},
    "transactions": {"kwargs": {"autocommit": False}},
    "autocommit": {"kwargs": {"autocommit": True}},
    "rows as dicts": {"kwargs": {"row_factory": dict_row}},
    "other cursors": {"kwargs": {"cursor_factory": psycopg.AsyncRawCursor}},
    "never prepared": {"kwargs": {"prepare_threshold": None}},
    "always prepared": {"kwargs": {"prepare_threshold": 0}},
}


ASSERT_READ_COMMITTED = """
CREATE FUNCTION is_read_committed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    ASSERT current_setting('transaction_isolation') = 'read committed';
    RETURN NULL;
END $$;
CREATE TRIGGER is_read_committed BEFORE INSERT OR UPDATE OR DELETE ON background_jobs EXECUTE FUNCTION is_read_committed()
"""


def url_with(url: str, settings: dict[str, str]) -> str:
    """The same with settings of the session, as an application's own DSN would have them."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return connection_url(url, options=options) if options else url


async def profile(pool: AsyncConnectionPool[Any]) -> dict[str, Any]:
    """What a connection of the pool is set to."""
    conn = await pool.getconn()
    try:
        names = "autocommit", "isolation_level", "read_only", "row_factory", "cursor_factory"
        # those of plpgsql are there once it was used
        query = "SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'"
        settings = await psycopg.AsyncCursor(conn).execute(query)
        found = dict(await settings.fetchall())
        await conn.rollback()
        return found | {name: getattr(conn, name) for name in names}
    finally:
        await pool.putconn(conn)


async def use(engine: PostgresEngine) -> None:
    """Everything that a runner does, twice, so that connections are used again."""
    storage = engine.storage
    for _ in range(2):
        runner = engine.runner()
        await storage.enqueue(
            [*mails(5), *mails(2, deduplicated=True, priority=1), mail(9, delay=60)]
        )
        twin, other_twin, *jobs = await runner.take(thorough=False)
        assert len(jobs) == 5
        assert await runner.complete(jobs[:1]) == {jobs[0].id}
        ends = (
            Retry(60.0, "boom"),
            Bury("over"),
            Archive("completed"),
            Release(),
            Release(),
            Release(),
        )
        settled = await runner.settle([*jobs[1:], twin, other_twin], *ends)
        assert len(settled.written) == 6
        [again] = await runner.take(1, token=9000)
        assert (await storage.release_claim(runner.session, 9000)).count == 1
        assert await storage.find(again.id)
        assert await storage.requeue(ids(await storage.list_jobs(JobState.DEAD))) == [jobs[2].id]
        assert await storage.stats()
        assert await storage.failed_jobs()
        assert runner.maintain().alive
        assert len(await runner.take()) == 4
        assert runner.control.close().count == 4
        engine.conn.execute("TRUNCATE background_jobs, archived_jobs, dead_jobs")


@pytest.mark.parametrize("settings", SESSIONS.values(), ids=SESSIONS)
async def test_sessions(database_url: str, warm_server: None, settings: dict[str, str]) -> None:
    """Rule 17: whatever the session is set to, everything works, and it stays set."""
    async with PostgresEngine.opened(
        url_with(database_url, settings), conn_url=database_url
    ) as engine:
        before = await profile(engine.pool)
        await use(engine)
        assert await profile(engine.pool) == before


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
async def test_kinds_of_connections(
    database_url: str, warm_server: None, settings: dict[str, Any]
) -> None:
    """Rule 17: whatever the driver's connections are like."""
    async with PostgresEngine.opened(database_url, **settings) as engine:
        before = await profile(engine.pool)
        await use(engine)
        assert await profile(engine.pool) == before


@pytest.mark.parametrize(
    "level", [psycopg.IsolationLevel.SERIALIZABLE, psycopg.IsolationLevel.REPEATABLE_READ]
)
async def test_isolation_set_in_the_driver(
    database_url: str, warm_server: None, level: psycopg.IsolationLevel
) -> None:
    """Rule 17: a level that the driver asks for at each BEGIN."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_isolation_level(level)
        await conn.set_read_only(True)

    async with PostgresEngine.opened(database_url, configure=configure) as engine:
        before = await profile(engine.pool)
        engine.conn.execute(ASSERT_READ_COMMITTED)
        await use(engine)
        assert await profile(engine.pool) == before


@pytest.fixture
def lists_are_json() -> Iterator[None]:
    """As applications have it that store lists."""
    psycopg.adapters.register_dumper(list, JsonbDumper)
    yield
    for dumper in (ListDumper, ListBinaryDumper):
        psycopg.adapters.register_dumper(list, dumper)


async def test_lists_that_are_something_else_to_the_application(
    database_url: str, warm_server: None, lists_are_json: None
) -> None:
    """Ours are arrays, also on the connections of transactional jobs."""
    async with PostgresEngine.opened(database_url) as engine:
        await use(engine)
        storage, runner, end = engine.storage, engine.runner(), Archive("completed", "so it is")
        await storage.enqueue(mails(2))
        one, two = await runner.take()
        async with storage.transaction(runner.session, Guard(one.id, one.token)) as run:
            assert run is not None
            await run.finish(Settlement(Guard(one.id, one.token), False, end))
        with storage.transaction_sync(runner.session, Guard(two.id, two.token)) as sync_run:
            assert sync_run is not None
            sync_run.finish(Settlement(Guard(two.id, two.token), False, end))
        kept = engine.conn.execute("SELECT id, reason FROM archived_jobs ORDER BY id").fetchall()
        assert kept == [(one.id, "so it is"), (two.id, "so it is")]


async def test_a_connection_class_that_connects_in_its_own_way(
    database_url: str, warm_server: None
) -> None:
    """The runner's own connections are of another class. Who can't see why they fail is told."""

    class Elsewhere(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
            return await super().connect(database_url, **kwargs)

    nowhere = connection_url(database_url, dbname="nowhere")
    opened = PostgresEngine.opened(nowhere, conn_url=database_url, connection_class=Elsewhere)
    async with opened as engine:
        assert await engine.storage.enqueue(mails(1))
        with pytest.raises(StorageUnavailableError, match=r"nowhere.*`kwargs` or `conninfo`"):
            await anyio.to_thread.run_sync(engine.storage.control().open, "in a thread", 15.0)


async def test_callable_conninfo_and_kwargs(database_url: str, warm_server: None) -> None:
    """Rule 17: a pool that asks for its password each time is asked by the runner's own links as well."""
    asked: list[str] = []

    async def conninfo() -> str:
        asked.append("conninfo")
        return database_url

    async with PostgresEngine.opened(database_url, conninfo=conninfo, max_size=1) as engine:
        control = engine.storage.control()
        await anyio.to_thread.run_sync(control.open, "in a thread", 15.0)
        assert (await anyio.to_thread.run_sync(control.close)).count == 0
        listener = engine.storage.listener()
        assert listener is not None
        await listener.open()
        await listener.close()
        await engine.storage.enqueue(mails(1))
    assert len(asked) >= 3


async def test_a_short_lock_timeout_is_not_ours(database_url: str, warm_server: None) -> None:
    """Rule 17, FAULTS 11: a claim that has to wait longer than the application's timeouts still happens."""
    short = {"statement_timeout": "100ms", "lock_timeout": "50ms"}
    async with PostgresEngine.opened(
        url_with(database_url, short), conn_url=database_url
    ) as engine:
        runner = engine.runner()
        await engine.storage.enqueue(mails(2))
        taken: list[int] = []

        async def take() -> None:
            taken.extend(ids(await runner.take()))

        async with anyio.create_task_group() as tasks:
            with engine.conn.transaction():
                engine.conn.execute("SELECT FROM worker_sessions FOR UPDATE")
                tasks.start_soon(take)
                await engine.wait_blocked(seconds=0.2)
        assert len(taken) == 2


@pytest.fixture
async def closed_pool(database_url: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False)
    yield pool
    await pool.close()


async def test_an_unopened_pool_is_opened_and_closed(closed_pool: AsyncConnectionPool[Any]) -> None:
    """Rule 17: and an open one is left open."""
    storage = PostgresStorage(closed_pool)
    await storage.open()
    assert not closed_pool.closed
    await storage.close()
    assert closed_pool.closed


async def test_an_open_pool_is_left_open(database_url: str) -> None:
    """Rule 17: it is the application's."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False) as pool:
        storage = PostgresStorage(pool)
        await storage.open()
        await storage.close()
        assert not pool.closed


async def test_a_dsn(database_url: str, conn: psycopg.Connection) -> None:
    """A DSN is a pool that the storage opens and closes itself."""
    storage = PostgresStorage(database_url)
    await storage.open()
    assert await storage.enqueue(mails(2)) == [1, 2]
    await storage.close()


async def test_missing_tables(raw_database_url: str) -> None:
    """The error says what to do."""
    storage = PostgresStorage(raw_database_url)
    with pytest.raises(MigrationError, match="workers migrate"):
        await storage.open()
    await storage.close()


async def test_a_broken_pool_connection(postgres: PostgresEngine) -> None:
    """Rule 14: a connection that died in the pool is an outcome unknown, and the next one is new."""
    await postgres.storage.enqueue(mails(1))
    # this pool's own connections: other tests may share the server
    async with postgres.pool.connection() as conn:
        pid = conn.info.backend_pid
    postgres.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    for _ in range(10):
        try:
            assert len(await postgres.storage.stats()) == 1
            return
        except StorageUnavailableError:
            pass
    pytest.fail("the pool never recovered")


async def test_times_in_any_session(database_url: str, warm_server: None) -> None:
    """Times are the same moments, whatever the session's zone and style."""
    when = datetime(2031, 5, 6, 7, 8, 9, 123457, tzinfo=UTC)
    url = url_with(database_url, SESSIONS["another place"])
    async with PostgresEngine.opened(url, conn_url=database_url) as engine:
        [job_id] = await engine.storage.enqueue([mail(run_at=when)])
        record = await engine.storage.find(job_id or 0)
        assert record is not None
        assert record.run_at == when


async def test_another_search_path(database_url: str, warm_server: None) -> None:
    """Rule 17: a checkout that finds another search_path than the first one had sets its own, and puts that one back."""
    async with PostgresEngine.opened(database_url, max_size=1) as engine:
        await engine.storage.enqueue(mails(1))
        conn = await engine.pool.getconn()
        await conn.close()
        await engine.pool.putconn(conn)
        engine.pool._configure = _elsewhere  # psycopg_pool has no public way
        await engine.storage.enqueue(mails(1))
        assert len(await engine.storage.list_jobs(JobState.AVAILABLE)) == 2


async def _elsewhere(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute(sql.SQL("SET search_path = pg_catalog"))
    await conn.commit()


HARMFUL = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "statement_timeout": "50ms",
    "lock_timeout": "50ms",
    "idle_in_transaction_session_timeout": "50ms",
    "transaction_timeout": "50ms",  # since PostgreSQL 17
}
FIT = {
    "default_transaction_isolation": {"read committed"},
    "default_transaction_read_only": {"off"},
    "lock_timeout": {"0", "2s", "5s"},
}


async def test_what_statements_run_under(database_url: str, conn: psycopg.Connection) -> None:
    """Rule 17: each setting that would do harm is changed for the checkout, and for the session's own link."""
    known = [row[0] for row in conn.execute("SELECT name FROM pg_settings")]
    harmful = {name: value for name, value in HARMFUL.items() if name in known}
    shown = "SELECT name, current_setting(name) FROM unnest(%(names)s::text[]) AS name"
    async with PostgresEngine.opened(
        url_with(database_url, harmful), conn_url=database_url
    ) as engine:
        storage: Any = engine.storage
        control: Any = engine.runner().control
        names = list(harmful)
        statements = dict(await storage._checkout.fetch(shown, {"names": names}))
        for found in (statements, dict(control._fetch(shown, names=names))):
            for name, value in found.items():
                assert value in FIT.get(name, {"0", "10s", "30s"}), name


async def test_what_the_server_refuses_for_its_limits_is_not_tried_for_ever(
    postgres: PostgresEngine,
) -> None:
    """Rule 14: the driver files it with what may be over soon; a batch must be split instead."""
    with pytest.raises(StorageRejectedError, match="can't store this"):
        await postgres.storage._checkout.fetch("SELECT repeat('x', 2000000000)", {})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "name"), [({}, "workers"), ({"application_name": "shop"}, "shop")]
)
async def test_connections_made_from_a_dsn_are_named(
    database_url: str, conn: psycopg.Connection, given: dict[str, str], name: str
) -> None:
    storage = PostgresStorage(connection_url(database_url, **given))
    await storage.open()
    try:
        asked = await storage._checkout.fetch("SELECT current_setting('application_name')", {})
    finally:
        await storage.close()
    assert asked == [(name,)]


async def test_missing_rights_are_told_with_the_role_to_grant(
    admin: psycopg.Connection, database_url: str
) -> None:
    with opened_users(admin, database_url) as users:
        storage = PostgresStorage(users.urls["enqueue"])
        await storage.open()
        try:
            with pytest.raises(StorageRejectedError, match="workers_readonly to look"):
                await storage.stats()
        finally:
            await storage.close()


async def test_a_connection_that_is_lost_while_another_is_waited_for(database_url: str) -> None:
    """The tasks of a pool end with its loop, before the last outcomes are written: it makes none any more."""
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False)
    await pool.open(wait=True)
    lender = Lender(pool, lambda: psycopg.AsyncConnection.connect(database_url))
    conn = await lender.borrow()
    waiting = asyncio.create_task(lender.borrow())
    async with asyncio.timeout(10):
        while not pool.get_stats().get("requests_waiting"):  # noqa: ASYNC110 - statistics can't be awaited
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task.get_name().startswith(f"{pool.name}-worker"):
                task.cancel()
        await conn.close()
        await lender.give_back(conn)
        other = await waiting
        await other.execute("SELECT")
    await lender.give_back(other)
    await lender.close()
    await pool.close(timeout=0)


async def test_a_give_back_that_is_cancelled_loses_no_connection(database_url: str) -> None:
    """Half-way through it would be nobody's, and a pool of one would have none for ever."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
        lender = Lender(pool, lambda: psycopg.AsyncConnection.connect(database_url))
        conn = await lender.borrow()
        async with pool._lock:
            giving = asyncio.create_task(lender.give_back(conn))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            giving.cancel()
            await asyncio.wait([giving])
        again = await pool.getconn(timeout=PATIENCE)
        assert again is conn
        await pool.putconn(again)


async def test_a_pool_that_makes_no_connections_any_more_is_not_waited_for(
    database_url: str,
) -> None:
    """Its tasks have ended with its loop, and what it had was lost half-way to somebody who was cancelled."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
        lender = Lender(pool, lambda: psycopg.AsyncConnection.connect(database_url))
        lost = await pool.getconn()
        for worker in pool._workers:
            worker.cancel()
        await asyncio.gather(*pool._workers, return_exceptions=True)
        async with asyncio.timeout(PATIENCE):
            conn = await lender.borrow()
        await lender.give_back(conn)
        await lender.close()
        await pool.putconn(lost)
        pool._workers.clear()  # or `close` would raise what they have raised


async def test_the_place_in_a_pools_line_is_kept(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives up each second and asks again is always the last one, and leaves a dead place each time."""
    monkeypatch.setattr(lender_module, "_PATIENCE", 0.001)
    looked = asyncio.Semaphore(0)

    class Looking(Lender):
        def _failures(self) -> int:
            looked.release()
            return super()._failures()

    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
        lender = Looking(pool, lambda: psycopg.AsyncConnection.connect(database_url))
        conn = await pool.getconn()
        waiting = asyncio.create_task(lender.borrow())
        async with asyncio.timeout(10):
            for _ in range(3):
                await looked.acquire()
            assert pool.get_stats()["requests_waiting"] == 1
            assert "requests_errors" not in pool.get_stats()
            behind = asyncio.create_task(pool.getconn())
            await asyncio.sleep(0)
            await pool.putconn(conn)
            lent = await waiting
            assert not behind.done()
            await lender.give_back(lent)
            await pool.putconn(await behind)


@pytest.mark.parametrize("served", [False, True])
async def test_a_place_in_the_line_that_nobody_wants_any_more(
    database_url: str, served: bool
) -> None:
    """The connection goes back, also where it comes as the one who waits is cancelled."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
        lender = Lender(pool, lambda: psycopg.AsyncConnection.connect(database_url))
        conn = await pool.getconn()
        waiting = asyncio.create_task(lender.borrow())
        async with asyncio.timeout(10):
            while not pool.get_stats().get("requests_waiting"):  # noqa: ASYNC110 - statistics can't be awaited
                await asyncio.sleep(0)
            if served:
                await pool.putconn(conn)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            if not served:
                await pool.putconn(conn)
            await pool.putconn(await pool.getconn())


@pytest.mark.parametrize("cancelled", ["prepare", "undo"])
async def test_a_checkout_that_is_cancelled_half_way(
    database_url: str, warm_server: None, monkeypatch: pytest.MonkeyPatch, cancelled: str
) -> None:
    """Once the server has been told, and before that is known: the connection is not given back changed."""
    url = url_with(database_url, SESSIONS["short timeouts"] | SESSIONS["serializable"])
    real, calls = fitting._set, 0

    async def broken(conn: psycopg.AsyncConnection[Any], values: dict[str, str]) -> dict[str, str]:
        nonlocal calls
        calls += 1
        before = await real(conn, values)
        if calls == {"prepare": 1, "undo": 2}[cancelled]:
            raise asyncio.CancelledError
        return before

    async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
        before = await profile(pool)
        storage = PostgresStorage(pool)
        await storage.open()
        monkeypatch.setattr(fitting, "_set", broken)
        with pytest.raises(asyncio.CancelledError):
            await storage.stats()
        assert await profile(pool) == before
        await storage.close()


async def test_a_search_path_that_somebody_sets_later(
    raw_database_url: str, warm_server: None
) -> None:
    """Both schemas have our tables: no statement would be refused in the wrong one."""
    with psycopg.connect(raw_database_url, autocommit=True) as conn:
        if conn.info.server_version < 180000:
            pytest.skip("before version 18 a server does not report its search_path")
        for schema in ("one", "two"):
            conn.execute(f"CREATE SCHEMA {schema}".encode())
            migrate(connection_url(raw_database_url, options=f"-csearch_path={schema}"))
    url = connection_url(raw_database_url, options="-csearch_path=one")
    async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
        storage = PostgresStorage(pool)
        await storage.open()
        async with pool.connection() as used:
            await used.execute("SET search_path = two")
        await storage.enqueue(mails(1))
        async with pool.connection() as used:
            rows = await used.execute(
                "SELECT current_schema(), (SELECT count(*) FROM one.background_jobs)"
            )
            assert await rows.fetchone() == ("two", 1)
        await storage.close()


async def test_a_pool_is_not_left_open_where_the_tables_are_missing(raw_database_url: str) -> None:
    """As by a page that shows the queue, before anybody has migrated."""
    pool = AsyncConnectionPool(raw_database_url, min_size=1, open=False)
    with pytest.raises(MigrationError):
        async with open_storage(pool):
            pytest.fail("there are no tables")
    assert pool.closed


async def test_a_database_without_an_encoding(raw_database_url: str) -> None:
    """Its text may be none: one such job would keep a whole claim from being read."""
    name = f"ascii_{secrets.token_hex(4)}"
    with psycopg.connect(raw_database_url, autocommit=True) as conn:
        conn.execute(
            f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0".encode()
        )
        try:
            storage = PostgresStorage(connection_url(raw_database_url, dbname=name))
            with pytest.raises(ConfigurationError, match="SQL_ASCII"):
                await storage.open()
            await storage.close()
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_a_pool_that_has_lost_one_and_is_busy_with_others_is_asked_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has goes from hand to hand: it never has any ready, and is well."""
    monkeypatch.setattr(lender_module, "_ASK_EVERY", 0.5)
    made: list[psycopg.AsyncConnection[Any]] = []

    async def connect() -> psycopg.AsyncConnection[Any]:
        made.append(await psycopg.AsyncConnection.connect(database_url))
        return made[-1]

    async def keep_busy() -> None:
        while True:
            async with pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(0.01)")

    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
        lender = Lender(pool, connect)
        lost = await lender.borrow()
        async with anyio.create_task_group() as others:
            for _ in range(2):
                others.start_soon(keep_busy)
            await lost.close()
            await lender.give_back(lost)
            async with asyncio.timeout(20):
                while (conn := await lender.borrow()) in made:
                    await lender.give_back(conn)
                    await asyncio.sleep(0)
            await lender.give_back(conn)
            others.cancel_scope.cancel()
        assert made, "it was not waited for at first"
        assert all(conn.closed for conn in made), "closed, now that it is well"
