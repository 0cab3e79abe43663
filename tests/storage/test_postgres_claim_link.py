"""The connection for claims: used when it is there and free, and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import psycopg
import pytest

from tests.helpers.role_users import limited_user
from tests.helpers.running import eventually
from tests.helpers.server import connection_url
from tests.storage.engines import PostgresEngine, ids, mails
from workers.errors import StorageRejectedError, StorageUnavailableError
from workers.storage.postgres import claim_link
from workers.storage.postgres.claim_link import CLAIM_PLANNER, ClaimLink

#: Whether a connection's last statement was a claim, and whether one as the pool's are.
LAST = """
SELECT query LIKE '%%INTO worker_claims%%', query LIKE '%%SET LOCAL%%' FROM pg_stat_activity WHERE pid = %s
"""
#: What the connections of these tests are called, and how many there are without the one for claims.
NAME, POOL, CONTROL = "claim-link", 1, 1
BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE query LIKE '%INTO worker_claims%' AND wait_event_type = 'Lock' AND datname = current_database()
"""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[PostgresEngine]:
    url = connection_url(database_url, application_name=NAME)
    async with PostgresEngine.opened(url, conn_url=database_url, max_size=1) as opened:
        yield opened


def link(engine: PostgresEngine) -> ClaimLink:
    return engine.storage._claim_link  # type: ignore[attr-defined,no-any-return]


async def made(engine: PostgresEngine) -> int:
    """Wait until the link is there; the process id of its server."""
    with anyio.fail_after(10):
        while (cursor := link(engine)._cursor) is None:
            making = link(engine)._making
            assert making is not None, "nobody makes one"
            await asyncio.wait([making])
    return cursor.connection.info.backend_pid


async def test_claims_go_over_a_connection_of_their_own(engine: PostgresEngine) -> None:
    """The first through the pool, as there is none yet, and all others over the same one, though the pool is used up."""
    runner = engine.runner()
    await engine.storage.enqueue(mails(4))
    first = await runner.take(1)
    pid = await made(engine)
    async with engine.pool.connection():
        with anyio.fail_after(10):
            others = [await runner.take(1) for _ in range(3)]
    assert len({job.id for jobs in [first, *others] for job in jobs}) == 4
    assert engine.conn.execute(LAST, [pid]).fetchone() == (True, False)


async def raw_cursors(conn: psycopg.AsyncConnection[Any]) -> None:
    conn.cursor_factory = psycopg.AsyncRawCursor


@pytest.mark.parametrize(
    "settings",
    [{"configure": raw_cursors}, {"kwargs": {"prepare_threshold": 0}}],
    ids=["raw cursors", "always prepared"],
)
async def test_it_is_made_whatever_the_pools_connections_are_like(
    database_url: str, settings: dict[str, Any]
) -> None:
    """It has all that they have, but speaks as we do."""
    async with PostgresEngine.opened(database_url, max_size=1, **settings) as engine:
        runner = engine.runner()
        await engine.storage.enqueue(mails(3))
        await runner.take(1)
        pid = await made(engine)
        for _ in range(2):
            assert len(await runner.take(1)) == 1
        assert engine.conn.execute(LAST, [pid]).fetchone() == (True, False)


async def test_claims_of_two_queues_do_not_wait_for_each_other(engine: PostgresEngine) -> None:
    """One is held up by a lock; the other goes through the pool meanwhile."""
    runner, held_up = engine.runner(), engine.runner("held up")
    await engine.storage.enqueue(mails(3))
    await runner.take(1)
    await made(engine)
    with psycopg.connect(engine.conn.info.dsn) as other:
        lock = "SELECT FROM worker_sessions WHERE id = %s FOR UPDATE"
        other.execute(lock, [held_up.session])
        waiting = asyncio.create_task(held_up.take(1))
        with anyio.fail_after(10):
            await eventually(engine.conn, BLOCKED, [(1,)])
            jobs = await runner.take(1)
        assert not waiting.done()
    assert ids(jobs) != ids(await waiting)


async def test_a_link_that_is_lost_is_made_again(engine: PostgresEngine) -> None:
    """The claim that finds it gone fails, as its outcome is unknown; the next one goes through the pool."""
    runner = engine.runner()
    await engine.storage.enqueue(mails(3))
    await runner.take(1)
    pid = await made(engine)
    engine.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    with pytest.raises(StorageUnavailableError):
        await runner.take(1)
    assert len(await runner.take(1)) == 1
    assert link(engine)._making is None  # not at once
    engine.now += 2
    assert len(await runner.take(1)) == 1
    assert await made(engine) != pid


async def test_it_makes_room_for_connections_that_are_needed(
    engine: PostgresEngine, database_url: str
) -> None:
    """Where a role may have no more of them: for the listener, the session and transactional jobs."""
    with limited_user(engine.conn, database_url, 3) as url:
        async with PostgresEngine.opened(url, conn_url=database_url, max_size=1) as limited:
            runner = limited.runner()
            await limited.storage.enqueue(mails(3))
            await runner.take(1)
            pid = await made(limited)
            listener = limited.storage.listener()
            assert listener is not None
            with pytest.raises(StorageUnavailableError, match="too many connections"):
                await listener.open()
            gone = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
            await eventually(engine.conn, gone, [(0,)])
            await listener.open()
            limited.now += 30
            assert len(await runner.take(1)) == 1
            assert link(limited)._making is None  # not soon
            await listener.close()


async def test_it_is_not_made_where_the_server_has_few_connections_left(
    engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims go through the pool, and it is tried again later."""
    runner = engine.runner()
    await engine.storage.enqueue(mails(3))
    monkeypatch.setattr(claim_link, "_FREE_TO_MAKE", 1.0)
    await runner.take(1)
    making = link(engine)._making
    assert making is not None
    await asyncio.wait([making])
    assert link(engine)._cursor is None
    monkeypatch.undo()
    assert len(await runner.take(1)) == 1
    assert link(engine)._making is None  # not at once
    engine.now += 2
    assert len(await runner.take(1)) == 1
    await made(engine)


async def test_it_is_given_up_when_the_server_has_few_connections_left(
    engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others do without theirs is worse than what it costs to borrow one for each claim."""
    runner = engine.runner()
    await engine.storage.enqueue(mails(4))
    await runner.take(1)
    pid = await made(engine)
    engine.now += 2
    await runner.take(1)
    assert await made(engine) == pid  # there are enough
    monkeypatch.setattr(claim_link, "_FREE_TO_KEEP", 1.0)
    engine.now += 60
    await runner.take(1)
    looking = link(engine)._looking
    assert looking is not None
    await asyncio.wait([looking])
    await eventually(
        engine.conn, f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}", [(0,)]
    )
    engine.now += 30
    assert len(await runner.take(1)) == 1
    assert link(engine)._making is None  # not soon


async def test_a_migration_under_a_running_runner(engine: PostgresEngine) -> None:
    """What is prepared on the link does not outlive it: one claim fails, no more."""
    runner = engine.runner()
    await engine.storage.enqueue(mails(4))
    await runner.take(1)
    await made(engine)
    assert len(await runner.take(1)) == 1
    engine.conn.execute("ALTER TABLE background_jobs ALTER COLUMN priority TYPE integer")
    with pytest.raises(StorageRejectedError, match="cached plan"):
        await runner.take(1)
    assert len(await runner.take(1)) == 1
    engine.now += 2
    await runner.take(1)
    await made(engine)
    await runner.take(1)


async def test_a_server_that_gives_no_more_connections_is_asked_rarely(
    engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def refused() -> Any:
        nonlocal tries
        tries += 1
        raise psycopg.OperationalError("too many connections for role")

    monkeypatch.setattr(link(engine), "_connect", refused)
    runner = engine.runner()
    await engine.storage.enqueue(mails(100))
    for _ in range(100):
        assert len(await runner.take(1)) == 1
        engine.now += 1
        await asyncio.sleep(0)
    assert 5 <= tries <= 8  # after 1, 2, 4, ... 60 seconds


async def test_arguments_that_fail_count_as_a_server_that_does(database_url: str) -> None:
    """A pool may ask a vault for its password, which may be down."""
    tries, down = 0, False

    def arguments() -> dict[str, Any]:
        nonlocal tries
        tries += down
        if down:
            raise LookupError("the vault is sealed")
        return {}

    async with PostgresEngine.opened(database_url, kwargs=arguments) as engine:
        runner = await asyncio.to_thread(engine.runner)
        await engine.storage.enqueue(mails(10))
        down = True
        for _ in range(10):
            assert len(await runner.take(1)) == 1
            await asyncio.sleep(0)
        assert tries == 1  # not with every claim
        assert link(engine)._making is None
        down = False


async def test_it_is_set_up_for_claims(engine: PostgresEngine) -> None:
    """How claims are planned is a setting of the connection; and the server ends what nobody waits for any more."""
    await engine.runner().take(1)
    await made(engine)
    cursor = link(engine)._cursor
    assert cursor is not None
    for name, value in (CLAIM_PLANNER | {"statement_timeout": "30s"}).items():
        await cursor.execute("SELECT current_setting(%s)", [name])
        assert await cursor.fetchone() == (value,)


@pytest.mark.parametrize("when", ["while it is made", "when it is there"])
async def test_it_is_closed_with_the_storage(engine: PostgresEngine, when: str) -> None:
    await engine.runner().take(1)
    if when == "when it is there":
        await made(engine)
    else:
        await asyncio.sleep(0)  # it has begun to connect
    making = link(engine)._making
    assert (making is None) == (when == "when it is there")
    await engine.storage.close()
    assert making is None or making.done()
    assert link(engine)._cursor is None
    gone = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{NAME}'"
    await eventually(engine.conn, gone, [(POOL + CONTROL,)])
