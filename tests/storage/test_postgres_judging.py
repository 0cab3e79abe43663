"""When a runner does not judge others: it has just come back itself, or the server has (rule 19). And idle timeouts."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from anyio import to_thread

from tests.helpers.own_server import NoOwnServerError, own_server
from tests.helpers.running import eventually
from tests.helpers.server import connection_url
from tests.storage.ear import Ear
from tests.storage.engines import LEASE, PostgresEngine, mails
from workers import migrate

SUSPECT_FOR_LONG = "UPDATE worker_sessions SET suspect_since = suspect_since - interval '1 minute'"
UP = "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float"


async def test_who_has_just_come_back_does_not_judge_by_locks(postgres: PostgresEngine) -> None:
    """What took its own connection has taken those of others; they get as long as it had."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue(mails(1))
    await runner.take()
    await runner.crash()
    assert other.control.recover(LEASE)
    other.maintain()
    postgres.conn.execute(SUSPECT_FOR_LONG)
    assert not other.maintain().rescue
    postgres.now += 5
    assert other.maintain().rescue


async def test_who_has_just_come_back_does_not_judge_by_leases(postgres: PostgresEngine) -> None:
    """Others could not renew theirs either while the server was away."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue(mails(1))
    await runner.take()
    assert other.control.recover(LEASE)
    postgres.conn.execute(
        "UPDATE worker_sessions SET lease_until = now() - interval '1 second' WHERE id = %s",
        [runner.session],
    )
    assert not other.maintain().rescue
    postgres.now += 5
    assert other.maintain().rescue


async def test_whoever_is_just_being_marked_dead_is_not_told_that_it_lives(
    postgres: PostgresEngine,
) -> None:
    """Rule 19: its statement began before that was committed, and waits for it; then it is to start no job."""
    runner = postgres.runner()
    session = [runner.session]
    postgres.conn.execute("UPDATE worker_sessions SET lease_until = now() WHERE id = %s", session)
    with psycopg.connect(postgres.conn.info.dsn) as sweep:
        sweep.execute("UPDATE worker_sessions SET alive = false WHERE id = %s", session)
        async with anyio.create_task_group() as group:

            async def maintain() -> None:
                assert not (await to_thread.run_sync(runner.maintain)).alive

            group.start_soon(maintain)
            await postgres.wait_blocked()
            sweep.commit()


async def test_who_has_just_begun_judges_by_locks_alone(postgres: PostgresEngine) -> None:
    """A first session has seen no outage: whoever left no lock behind is dead; but the leases may be of one."""
    runner = postgres.runner()
    late = postgres.runner("late")
    await runner.crash()
    postgres.conn.execute(
        "UPDATE worker_sessions SET lease_until = now() - interval '1 second' WHERE id = %s",
        [late.session],
    )
    before = postgres.now
    other = postgres.runner("other")
    postgres.now = before
    other.maintain()
    postgres.conn.execute(SUSPECT_FOR_LONG)
    assert other.maintain().rescue
    dead = "SELECT id FROM worker_sessions WHERE NOT alive"
    assert postgres.conn.execute(dead.encode()).fetchall() == [(runner.session,)]


async def test_free_locks_mean_nothing_right_after_a_start_of_the_server() -> None:
    """It has freed those of healthy runners as well, and they need a moment to come back."""
    try:
        with own_server() as server:
            migrate(server.dsn)
            async with PostgresEngine.opened(server.dsn) as engine:
                runner, other = engine.runner(), engine.runner("other")
                await runner.crash()
                other.maintain()
                engine.conn.execute(SUSPECT_FOR_LONG)
                judged = other.maintain().rescue
                ((up,),) = engine.conn.execute(UP)
                if up >= 5:
                    pytest.skip(f"this machine is too busy: the server was up for {up:.1f} s")
                assert not judged
                engine.conn.execute("SELECT pg_sleep(greatest(0, 5.1 - %s))", [up])
                assert other.maintain().rescue
    except NoOwnServerError as error:
        pytest.skip(str(error))


async def test_a_free_lock_means_nothing_on_a_server_on_which_it_was_never_taken(
    postgres: PostgresEngine,
) -> None:
    """Such as a standby that was promoted: nobody holds a lock there until he has come over."""
    runner = postgres.runner()
    await runner.crash()
    late = postgres.runner("late")
    postgres.conn.execute(
        "UPDATE worker_sessions SET locked_under = locked_under - interval '9 days'"
    )
    other = postgres.runner("other")
    other.maintain()
    postgres.conn.execute(SUSPECT_FOR_LONG)
    assert not other.maintain().rescue
    assert late.control.recover(LEASE)  # it has taken its lock here, and is judged by it
    await late.crash()
    other.maintain()
    postgres.conn.execute(SUSPECT_FOR_LONG)
    assert other.maintain().rescue
    dead = "SELECT id FROM worker_sessions WHERE NOT alive"
    assert postgres.conn.execute(dead.encode()).fetchall() == [(late.session,)]


async def test_our_links_outlive_an_idle_timeout(
    database_url: str, conn: psycopg.Connection, warm_server: None
) -> None:
    """A role may have one for web requests; the runner's own links are idle for a living."""
    if conn.info.server_version < 140000:
        pytest.skip("idle_session_timeout came with PostgreSQL 14")
    url = connection_url(database_url, options="-c idle_session_timeout=200")
    async with PostgresEngine.opened(url, conn_url=database_url) as engine:
        runner = engine.runner()
        listener = engine.storage.listener()
        assert listener is not None
        await listener.open()
        storage: Any = engine.storage
        links = [storage._connector.connect(), await storage._connector.connect_async()]
        # one that has no such luck was idle for no longer
        with psycopg.connect(url, autocommit=True) as idle:
            gone = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {idle.info.backend_pid}"
            await eventually(conn, gone, [(0,)])
        assert runner.maintain().alive
        await to_thread.run_sync(lambda: runner.maintain(probe=listener.address))
        assert await Ear(listener).hear() is None
        await listener.close()
        links[0].execute("SELECT 1")
        await links[1].execute("SELECT 1")
        links[0].close()
        await links[1].close()
