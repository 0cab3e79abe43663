"""The connections of transactional jobs: what a job leaves behind, links that are half open, servers that give no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import psycopg
import pytest
from anyio import to_thread
from psycopg.adapt import PyFormat
from psycopg.rows import dict_row, tuple_row
from psycopg.types import TypeInfo
from psycopg.types.json import JsonbDumper, set_json_loads
from psycopg.types.string import TextLoader

from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.running import eventually
from tests.storage.engines import PostgresEngine, Runner, mails
from workers.errors import StorageUnavailableError
from workers.job import ClaimedJob
from workers.lifecycle import Archive, Delete, Transition
from workers.storage.base import Guard, Settlement
from workers.storage.postgres import kept_links, shelf, transactions
from workers.storage.postgres.baseline import Baseline
from workers.storage.postgres.links import AsyncLink, Link

both = pytest.mark.parametrize("kind", ["async", "sync"])


async def first_of(conn: Any, query: str) -> Any:
    """The first value of the first row, on either kind of connection."""
    cursor = conn.execute(query)
    row = (await cursor if hasattr(cursor, "__await__") else cursor).fetchone()
    (value,) = await row if hasattr(row, "__await__") else row
    return value


class Work:
    """An attempt, the same for both kinds of connection."""

    def __init__(self, run: Any, job: ClaimedJob) -> None:
        self.conn = run.connection
        self.pid = self.conn.info.backend_pid
        self._run = run
        self._job = job

    async def execute(self, query: str) -> Any:
        cursor = self.conn.execute(query)
        return await cursor if hasattr(cursor, "__await__") else cursor

    async def ask(self, query: str) -> Any:
        """The first value of the first row."""
        return await first_of(self.conn, query)

    async def finish(self, transition: Transition | None = None) -> None:
        job = self._job
        settlement = Settlement(Guard(job.id, job.token), job.deduplicated, transition or Delete())
        finished = self._run.finish(settlement)
        if finished is not None:
            await finished


Works = Callable[..., AbstractAsyncContextManager[Work]]


def works(engine: PostgresEngine, runner: Runner, kind: str) -> Works:
    """Each call is the attempt of a job of its own; `ready` is called when that is claimed."""

    @asynccontextmanager
    async def work(ready: Callable[[], object] = object) -> AsyncIterator[Work]:
        storage = engine.storage
        await storage.enqueue(mails(1))
        [job] = await runner.take()
        ready()
        guard = Guard(job.id, job.token)
        if kind == "async":
            async with storage.transaction(runner.session, guard) as run:
                assert run is not None
                yield Work(run, job)
        else:
            with storage.transaction_sync(runner.session, guard) as sync_run:
                assert sync_run is not None
                yield Work(sync_run, job)

    return work


@pytest.fixture(params=["async", "sync"])
def work(request: pytest.FixtureRequest, postgres: PostgresEngine) -> Works:
    postgres.conn.execute(
        "CREATE TABLE effects (what text DEFAULT 'here'); CREATE SEQUENCE numbers"
    )
    postgres.conn.execute("CREATE TABLE old AS SELECT * FROM background_jobs")
    return works(postgres, postgres.runner(), request.param)


@both
async def test_behind_a_pooler_the_driver_is_put_back_and_the_session_is_let_be(
    database_url: str, kind: str
) -> None:
    """That session may be in other hands by now; what the connection object was set to is ours."""
    links = kept_links.KeptLinks(
        lambda: Link.connect(database_url, autocommit=True),
        lambda: AsyncLink.connect(database_url, autocommit=True),
        lambda: True,
    )
    conn: Any
    for expected in ("0", "7s"):
        kept: Any = await links.take_async() if kind == "async" else links.take()
        conn = kept.link
        assert conn.row_factory is tuple_row
        assert await first_of(conn, "SHOW statement_timeout") == expected
        await first_of(conn, "SELECT set_config('statement_timeout', '7s', false)")
        conn.row_factory = dict_row
        if kind == "async":
            await links.give_back_async(kept, dirty=True)
        else:
            links.give_back(kept, dirty=True)
    links.close()


#: What a job may do to its session, and what the next one must not see of it.
SPOILED = {
    "a search path": ("SET search_path = pg_catalog", "current_setting('search_path')"),
    "a local search path": ("SET LOCAL search_path = pg_temp", "current_setting('search_path')"),
    "a timeout": ("SET statement_timeout = '7s'", "current_setting('statement_timeout')"),
    "a short timeout": (
        "SET idle_session_timeout = '9s'",
        "current_setting('idle_session_timeout')",
    ),
    "a time zone": ("SET timezone = 'Asia/Tokyo'", "current_setting('timezone')"),
    "a role": ("SET ROLE pg_monitor", "current_user"),
    "another user": ("SET SESSION AUTHORIZATION pg_monitor", "session_user"),
    "a setting of its own": (
        "SET app.tenant = '7'",
        "coalesce(current_setting('app.tenant', true), '')",
    ),
    "an encoding": ("SET client_encoding = 'LATIN1'", "current_setting('client_encoding')"),
    "a lock": (
        "SELECT pg_advisory_lock(7001)",
        "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    "a cursor": (
        "DECLARE leftover CURSOR WITH HOLD FOR SELECT 1",
        "(SELECT count(*) FROM pg_cursors WHERE name = 'leftover')",
    ),
    "a temporary table": (
        "CREATE TEMP TABLE effects (x int)",
        "to_regclass('pg_temp.effects')::text",
    ),
    "prepared statements": (
        """PREPARE leftover AS SELECT 1; PREPARE "all; 100% ""of"" them" AS SELECT 2""",
        "(SELECT count(*) FROM pg_prepared_statements WHERE from_sql)",
    ),
    "a listener": ("LISTEN leftover", "(SELECT count(*) FROM pg_listening_channels())"),
    "read only": (
        "SET default_transaction_read_only = on",
        "current_setting('transaction_read_only')",
    ),
}


@pytest.mark.parametrize(("statement", "shown"), SPOILED.values(), ids=SPOILED)
async def test_what_a_job_leaves_behind_does_not_reach_the_next(
    work: Works, statement: str, shown: str
) -> None:
    """Rule 16: and neither keeps it the job from being finished."""
    pids = []
    async with work() as first:
        before = await first.ask(f"SELECT {shown}")
        await first.finish()
        pids.append(first.pid)
    async with work() as spoiler:
        await spoiler.execute(statement)
        await spoiler.finish()
        pids.append(spoiler.pid)
    async with work() as third:
        assert await third.ask(f"SELECT {shown}") == before
        await third.execute("INSERT INTO effects DEFAULT VALUES")
        await third.finish(Archive("completed"))
        pids.append(third.pid)
    assert len(set(pids)) == 1


@pytest.mark.parametrize(
    "spoil", ["SET LOCAL search_path = pg_temp", "SET LOCAL ROLE pg_monitor", "SET ROLE pg_monitor"]
)
@pytest.mark.parametrize("end", [Delete(), Archive("completed")])
async def test_a_job_is_finished_as_whom_and_where_it_began(
    postgres: PostgresEngine, work: Works, spoil: str, end: Transition
) -> None:
    """Whatever it has SET LOCAL; and until the commit, when deferred triggers run, that is as the job has left it."""
    async with work() as attempt:
        await attempt.execute("INSERT INTO effects VALUES ('100%')")
        await attempt.execute(spoil)
        asked = "SELECT current_user || current_setting('search_path')"
        before = await attempt.ask(asked)
        await attempt.finish(end)
        assert await attempt.ask(asked) == before
    assert postgres.conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)
    assert postgres.conn.execute("SELECT what FROM effects").fetchall() == [("100%",)]


async def test_the_drivers_attributes_are_put_back(work: Works) -> None:
    """They can be set where no transaction is open: after it."""
    async with work() as first:
        await first.finish()
    conn: Any = first.conn
    names = [
        *("isolation_level", "read_only", "deferrable", "autocommit", "row_factory"),
        *("cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max"),
    ]
    before = {name: getattr(conn, name) for name in names}
    async with work() as spoiler:
        conn._isolation_level, conn._read_only, conn._deferrable = (
            psycopg.IsolationLevel(4),
            True,
            True,
        )
        conn._autocommit, conn.row_factory = False, dict_row
        conn.cursor_factory = {psycopg.Cursor: psycopg.RawCursor}.get(
            conn.cursor_factory, psycopg.AsyncRawCursor
        )
        conn.prepare_threshold, conn.prepared_max = 0, 1
        await spoiler.finish()
    assert spoiler.conn is conn
    assert {name: getattr(conn, name) for name in names} == before


async def test_the_drivers_adapters_are_put_back(work: Works) -> None:
    """What a job has registered on its connection, of every kind."""
    async with work() as spoiler:
        conn: Any = spoiler.conn
        set_json_loads(lambda text: "spoilt", conn)
        conn.adapters.register_loader("int4", TextLoader)
        conn.adapters.register_dumper(list, JsonbDumper)
        conn.adapters.types.add(TypeInfo("leftover", 7001, 7002))
        assert await spoiler.ask("SELECT '[1]'::jsonb") == "spoilt"
        await spoiler.finish(Archive("completed"))
    async with work() as last:
        assert last.conn is conn
        assert await last.ask("SELECT '[1]'::jsonb") == [1]
        assert await last.ask("SELECT 1") == 1
        assert conn.adapters.get_dumper(list, PyFormat.AUTO) is not JsonbDumper
        assert conn.adapters.types.get("leftover") is None
        await last.finish()


async def test_handlers_and_notifications_are_their_jobs_own(work: Works) -> None:
    """A handler is told nothing of the next job; what came for one that has none waits for nobody."""
    heard: list[object] = []
    said = "DO $$ BEGIN RAISE NOTICE 'said'; END $$; LISTEN leftover; NOTIFY leftover"
    async with work() as first:
        conn: Any = first.conn
        conn.add_notice_handler(heard.append)
        conn.add_notify_handler(heard.append)
        await first.execute(said)
        await first.finish()
    assert len(heard) == 2
    async with work() as second:
        await second.execute(said)
        await second.finish()
    assert len(heard) == 2
    async with work() as third:
        assert first.conn is second.conn is third.conn
        came = conn.notifies(timeout=0)
        assert ([each async for each in came] if hasattr(came, "__aiter__") else [*came]) == []
        await third.finish()


async def test_a_pools_configure_adds_nothing_again(database_url: str, warm_server: None) -> None:
    """It is called after each reset, for what is set on the session; its handlers are there already."""
    heard: list[str | None] = []

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_autocommit(True)
        conn.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        await conn.execute("PREPARE of_the_pool AS SELECT 7")

    async with PostgresEngine.opened(database_url, configure=configure) as engine:
        work, conns = works(engine, engine.runner(), "async"), set()
        for number in range(3):
            async with work() as attempt:
                await attempt.execute(f"DO $$ BEGIN RAISE NOTICE '{number}'; END $$")
                assert await attempt.ask("EXECUTE of_the_pool") == 7
                await attempt.finish()
                conns.add(attempt.conn)
    assert heard == ["0", "1", "2"]
    assert len(conns) == 1


async def test_numbers_that_a_job_drew_are_its_own(work: Works) -> None:
    """`lastval` of one job means nothing to another."""
    async with work() as first:
        assert await first.ask("SELECT nextval('numbers')") == await first.ask("SELECT lastval()")
        await first.finish()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        async with work() as second:
            await second.ask("SELECT lastval()")
    assert second.pid == first.pid


async def test_what_the_driver_has_prepared_stays_prepared(work: Works) -> None:
    """A reset that deallocates would leave the driver with names that mean nothing."""
    for _ in range(8):
        async with work() as attempt:
            await attempt.execute("SELECT what FROM effects")
            await attempt.finish()
    async with work() as last:
        assert await last.ask("SELECT count(*) FROM pg_prepared_statements") > 0
        await last.execute("SELECT what FROM effects")
        await last.finish()


async def test_what_can_not_be_reset_is_not_kept(
    work: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job itself is done."""
    with monkeypatch.context() as patch:

        def fail(*args: object) -> None:
            raise psycopg.errors.InsufficientPrivilege("no")

        patch.setattr(Baseline, "_restore_plain", fail)
        async with work() as first:
            await first.finish()
    assert first.conn.closed
    async with work() as second:
        await second.finish()
    assert second.pid != first.pid


async def test_a_role_that_the_connection_began_with_is_kept(
    database_url: str, warm_server: None
) -> None:
    """A pool's `configure` may have set it: the reset goes back to that, not to the user that logged in."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_autocommit(True)
        await conn.execute("SET ROLE pg_monitor; SET app.tenant = '100%'")

    grant = (
        "GRANT ALL ON ALL TABLES IN SCHEMA {0} TO pg_monitor;"
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA {0} TO pg_monitor;"
        "GRANT ALL ON ALL FUNCTIONS IN SCHEMA {0} TO pg_monitor;"
        "GRANT USAGE ON SCHEMA {0} TO pg_monitor"
    )
    with psycopg.connect(database_url, autocommit=True) as conn:
        ((schema,),) = conn.execute("SELECT current_schema()")
        conn.execute(grant.format(schema).encode())
    async with PostgresEngine.opened(
        database_url, conn_url=database_url, configure=configure
    ) as engine:
        work = works(engine, engine.runner(), "async")
        for spoil in ("RESET ROLE", "SET ROLE pg_read_all_stats; RESET app.tenant", "SELECT 1"):
            async with work() as attempt:
                asked = "SELECT current_user || current_setting('app.tenant')"
                assert await attempt.ask(asked) == "pg_monitor100%"
                await attempt.execute(spoil)
                await attempt.finish()


# --------------------------------------------------------------------------------------------------------- half-open links


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxy_to(database_url) as started:
        yield started


@both
async def test_a_half_open_link_is_replaced_before_a_job_begins(
    database_url: str, warm_server: None, proxy: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted; the others that were idle as well are not tried one by one."""
    monkeypatch.setattr(transactions, "_BEGIN_SECONDS", 0.3)
    monkeypatch.setattr(kept_links, "_RESET_SECONDS", 600.0)
    async with PostgresEngine.opened(proxy.url, conn_url=database_url) as engine:
        work = works(engine, engine.runner(), kind)
        async with work() as first, work() as second:
            await second.finish()
            await first.finish()
        async with work(lambda: proxy.hold_reply("BEGIN", times=1)) as third:
            await third.finish()
        assert first.conn.closed
        assert second.conn.closed
        assert third.pid not in {first.pid, second.pid}


@both
async def test_a_row_is_not_waited_for_without_end(
    postgres: PostgresEngine, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has it locked, or the link is half open: the job has not begun, and is tried again later."""
    monkeypatch.setattr(transactions, "_LOCK_SECONDS", 0.3)
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(1))
    [job] = await runner.take()
    guard = Guard(job.id, job.token)

    async def attempt() -> None:
        async with postgres.storage.transaction(runner.session, guard):
            pass

    def attempt_in_thread() -> None:
        with postgres.storage.transaction_sync(runner.session, guard):
            pass

    with postgres.conn.transaction():
        postgres.conn.execute("SELECT FROM background_jobs FOR UPDATE")
        with pytest.raises(StorageUnavailableError, match=r"said nothing for 0\.3 s"):
            await (attempt() if kind == "async" else to_thread.run_sync(attempt_in_thread))


async def test_a_job_takes_as_long_as_it_takes(
    work: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is ours is bounded."""
    monkeypatch.setattr(transactions, "_LOCK_SECONDS", 0.2)
    monkeypatch.setattr(transactions, "_BEGIN_SECONDS", 0.2)
    for _ in range(2):
        async with work() as attempt:
            await attempt.execute("SELECT pg_sleep(0.6)")
            await attempt.finish()


@both
async def test_a_rollback_on_a_half_open_link_is_bounded(
    database_url: str, warm_server: None, proxy: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has failed already: that must not take for ever to be said."""
    monkeypatch.setattr(transactions, "_LOCK_SECONDS", 0.5)
    async with PostgresEngine.opened(proxy.url, conn_url=database_url) as engine:
        work = works(engine, engine.runner(), kind)
        with pytest.raises(ZeroDivisionError):
            async with work(lambda: proxy.hold_reply("ROLLBACK", times=1)) as attempt:
                raise ZeroDivisionError
        assert attempt.conn.closed


async def test_idle_connections_are_closed_after_a_while(
    postgres: PostgresEngine, work: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing else happens."""
    monkeypatch.setattr(shelf, "IDLE_SECONDS", 0.2)
    async with work() as first:
        await first.finish()
    gone = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {first.pid}"
    await eventually(postgres.conn, gone, [(0,)])
    assert first.conn.closed


async def test_what_was_idle_for_long_is_not_used_again(
    postgres: PostgresEngine, work: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the loop had no time to close it."""
    storage: Any = postgres.storage
    storage._transactions._links._loop = None
    async with work() as first:
        await first.finish()
    monkeypatch.setattr(shelf, "IDLE_SECONDS", 0.0)
    async with work() as second:
        await second.finish()
    assert second.pid != first.pid
    assert first.conn.closed


# ------------------------------------------------------------------------------------- servers that give no more connections


class Scarce:
    """A server that gives no more than so many connections."""

    def __init__(self, storage: Any, limit: int) -> None:
        self.limit = limit
        self.asked = self.given = 0
        self.links: list[Any] = []
        links = storage._transactions._links
        self._connect, self._connect_async = links._connect, links._connect_async
        links._connect, links._connect_async = self.connect, self.connect_async

    def _check(self) -> None:
        self.asked += 1
        if self.given - sum(link.closed for link in self.links) >= self.limit:
            raise psycopg.OperationalError("sorry, too many clients already")
        self.given += 1

    def connect(self) -> Any:
        self._check()
        self.links.append(self._connect())
        return self.links[-1]

    async def connect_async(self) -> Any:
        self._check()
        self.links.append(await self._connect_async())
        return self.links[-1]


@both
async def test_a_job_waits_for_the_connection_of_another(
    postgres: PostgresEngine, kind: str
) -> None:
    """Instead of being put off for seconds; and the server is not asked by each of them again and again."""
    scarce = Scarce(postgres.storage, 2)
    storage, runner = postgres.storage, postgres.runner()
    await storage.enqueue(mails(40))
    jobs = await runner.take()
    pids: list[int] = []

    async def attempt(job: ClaimedJob) -> None:
        guard = Guard(job.id, job.token)
        settlement = Settlement(guard, job.deduplicated, Delete())
        async with storage.transaction(runner.session, guard) as run:
            assert run is not None
            pids.append(run.connection.info.backend_pid)
            await run.connection.execute("SELECT pg_sleep(0.01)")
            await run.finish(settlement)

    def attempt_sync(job: ClaimedJob) -> None:
        guard = Guard(job.id, job.token)
        with storage.transaction_sync(runner.session, guard) as run:
            assert run is not None
            pids.append(run.connection.info.backend_pid)
            run.connection.execute("SELECT pg_sleep(0.01)")
            run.finish(Settlement(guard, job.deduplicated, Delete()))

    async with asyncio.TaskGroup() as tasks:
        for job in jobs:
            tasks.create_task(
                attempt(job) if kind == "async" else to_thread.run_sync(attempt_sync, job)
            )
    assert len(pids) == 40
    assert len(set(pids)) == len(scarce.links) == 2
    if kind == "async":  # a burst of threads may ask all at once
        assert scarce.asked < 10


@both
async def test_the_wait_for_a_connection_has_an_end(
    postgres: PostgresEngine, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the server's own words are the reason; and nothing is waited for where there is nothing to wait for."""
    monkeypatch.setattr(kept_links, "_WAIT_SECONDS", 0.3)
    scarce = Scarce(postgres.storage, 1)
    work = works(postgres, postgres.runner(), kind)
    async with work() as first:
        with pytest.raises(StorageUnavailableError, match="too many clients"):
            async with work():
                pass
        await first.finish()
    async with work() as second:
        await second.finish()
    assert second.pid == first.pid
    first.conn.close() if kind == "sync" else await first.conn.close()
    scarce.limit = 0
    monkeypatch.setattr(kept_links, "_WAIT_SECONDS", 600.0)
    with pytest.raises(StorageUnavailableError, match="too many clients"):
        async with work():
            pass


async def test_the_place_of_a_lost_connection_is_taken(postgres: PostgresEngine) -> None:
    """Who waits is told of it, and makes a new one."""
    Scarce(postgres.storage, 1)
    work = works(postgres, postgres.runner(), "async")

    async def lose() -> None:
        async with work() as first:
            waiting.append(asyncio.create_task(use()))
            await in_line(postgres.storage)
            postgres.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [first.pid])
            await first.execute("SELECT 1")

    async def use() -> int:
        async with work() as attempt:
            await attempt.finish()
            return int(attempt.pid)

    waiting: list[asyncio.Task[int]] = []
    with pytest.raises(psycopg.OperationalError):
        await lose()
    async with asyncio.timeout(2):
        assert await waiting[0]


async def in_line(storage: Any) -> None:
    """Return once a job waits for a connection."""
    line = storage._transactions._links._async_shelf._line
    async with asyncio.timeout(10):
        while not line:  # noqa: ASYNC110 - it does not say that it waits
            await asyncio.sleep(0)


async def test_who_gives_up_waiting_keeps_no_connection(postgres: PostgresEngine) -> None:
    """A job that is stopped while it waits leaves the line, and what was just handed to it goes to the next."""
    Scarce(postgres.storage, 1)
    work = works(postgres, postgres.runner(), "async")

    async def wait() -> None:
        async with work() as attempt:
            await attempt.finish()

    async with work() as first:
        given_up = asyncio.create_task(wait())
        await in_line(postgres.storage)
        await first.finish()
    given_up.cancel()  # the connection is on its way to it
    with pytest.raises(asyncio.CancelledError):
        await given_up
    async with work() as third:
        await third.finish()
    assert third.pid == first.pid
