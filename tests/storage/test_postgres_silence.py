"""Servers that say nothing: no link of ours waits for one for ever (rule 18)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from anyio import to_thread

from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.runners import eventually
from tests.storage.engines import LEASE, PostgresEngine
from workers.errors import StorageUnavailableError
from workers.storage.postgres import listener, session, strays
from workers.storage.postgres.links import AsyncLink, Link, SilentLinkError
from workers.storage.postgres.statements import statement

#: Seconds that the links of these tests wait.
SHORT = 0.3
#: Longer than any test lasts.
SLEEP = "SELECT pg_sleep(600)"
WAITS = [name for name in vars(psycopg.waiting) if name.startswith("wait_") and "conn" not in name]


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxy_to(database_url) as started:
        yield started


@pytest.fixture
async def far(
    proxy: Proxy, database_url: str, warm_server: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PostgresEngine]:
    """An engine behind `proxy`, impatient."""
    monkeypatch.setattr(session, "_LEAST_PATIENCE", SHORT)
    monkeypatch.setattr(listener, "SETUP_SECONDS", SHORT)
    async with PostgresEngine.opened(proxy.url, conn_url=database_url) as engine:
        yield engine


def end(conn: psycopg.Connection, pid: int) -> None:
    """Nobody waits for this backend any more."""
    conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@pytest.mark.parametrize("way", sorted(set(WAITS) - {"wait_async"}))
def test_every_way_to_wait_is_bounded(
    conn: psycopg.Connection, database_url: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has several, one of them in C."""
    monkeypatch.setattr(psycopg.waiting, "wait", getattr(psycopg.waiting, way))
    link = Link.connect(database_url, autocommit=True)
    pid = link.info.backend_pid
    link.patience = SHORT
    assert link.execute("SELECT 1").fetchall() == [(1,)]
    with pytest.raises(SilentLinkError, match=r"said nothing for 0\.3 s"):
        link.execute(SLEEP)
    assert link.closed
    end(conn, pid)


async def test_an_asynchronous_link_is_bounded(conn: psycopg.Connection, database_url: str) -> None:
    """It is closed, and says so at the next statement."""
    link = await AsyncLink.connect(database_url, autocommit=True)
    pid = link.info.backend_pid
    link.patience = SHORT
    async with link.transaction():
        await link.execute("SELECT 1")
    with pytest.raises(SilentLinkError):
        await link.execute(SLEEP)
    assert link.closed
    end(conn, pid)


async def test_what_keeps_arriving_is_no_silence(database_url: str) -> None:
    """A long reply is read to its end; a link without patience waits as long as it takes."""
    link = await AsyncLink.connect(database_url, autocommit=True)
    link.patience = 2 * SHORT
    # slower than the driver looks up from its waiting, and longer than the link is patient
    rows = "SELECT repeat('x', 10000), pg_sleep(0.2) FROM generate_series(1, 6)"
    assert len(await (await link.execute(rows)).fetchall()) == 6
    link.patience = None
    await link.execute("SELECT pg_sleep(1)")
    await link.close()


async def test_a_half_open_control_link_is_given_up(far: PostgresEngine, proxy: Proxy) -> None:
    """Rule 18: then the session is taken again on another one, and keeps what it has."""
    runner = far.runner(lease=2 * SHORT)
    proxy.freeze()
    with pytest.raises(StorageUnavailableError, match="said nothing"):
        await to_thread.run_sync(runner.maintain)
    proxy.thaw()
    assert runner.control.recover(LEASE)
    assert runner.maintain().alive


async def test_one_whose_link_may_be_half_open_is_looked_at_closely(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 19: before its lock is free, and not for ever, as that of a stopped process is not."""
    runner, other = postgres.runner(), postgres.runner()
    assert not other.maintain().silent
    monkeypatch.setattr(session, "USER_TIMEOUT", SHORT)
    await to_thread.run_sync(eventually, lambda: other.maintain().silent)
    runner.maintain()
    assert not other.maintain().silent
    # as if what it said last was said too long ago
    monkeypatch.setattr(session, "USER_TIMEOUT", -2.0)
    assert not other.maintain().silent


async def test_a_look_for_strays_is_bounded_whatever_there_is(postgres: PostgresEngine) -> None:
    """Names are a producer's to choose: neither their number nor what is told of them grows without end."""
    runner = postgres.runner()
    insert = """
        INSERT INTO background_jobs (job_type, data, queue, created_at)
        SELECT 'type ' || n, '{}', CASE WHEN n > 3000 THEN 'queue ' || n END, now() - interval '1 minute'
        FROM generate_series(1, 6000) AS n
    """
    postgres.conn.execute(insert)
    started = runner.maintain()
    assert len(started.unknown) == 100
    walk = statement("stray").partition("SELECT DISTINCT")[0] % {
        "queues": "'{}'",
        "job_types": "'{}'",
    }
    count = "SELECT (SELECT count(*) FROM queues), (SELECT count(*) FROM homeless)"
    assert postgres.conn.execute((walk + count).encode()).fetchall() == [(1000, 1000)]


async def test_a_look_for_strays_that_takes_too_long_takes_nothing_along(
    far: PostgresEngine, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the same round has found out is told, a death for instance; and it is not looked again at once."""
    runner = far.runner(lease=2 * SHORT)
    control: Any = runner.control
    pid = control._link.conn.info.backend_pid
    monkeypatch.setattr(strays, "_STRAY", SLEEP)
    assert (await to_thread.run_sync(runner.maintain)).alive
    assert control._link.conn.closed
    end(conn, pid)
    began = time.monotonic()
    await to_thread.run_sync(control.wait, 20.0)
    assert time.monotonic() - began < 10, "its lock is free: the link is not waited with"
    assert runner.control.recover(2 * SHORT)
    assert runner.maintain().alive


async def test_a_lease_is_waited_for_by_half(far: PostgresEngine) -> None:
    """There must be time left to take the lock again; what a rescue of many jobs takes is no reason to give up."""
    control: Any = far.runner(lease=100.0).control
    assert control._link.conn.patience == 50.0
    control.recover(SHORT)
    assert control._link.conn.patience == SHORT


async def test_a_session_can_be_ended_on_a_half_open_link(
    far: PostgresEngine, proxy: Proxy
) -> None:
    """A shutdown waits no longer than for a link that is well, whatever the lease."""
    runner = far.runner(lease=1000.0)
    proxy.freeze()
    with pytest.raises(StorageUnavailableError, match="said nothing"):
        await to_thread.run_sync(runner.control.close)
    proxy.thaw()
    assert runner.control.close().count == 0
    assert far.sessions() == set()


async def test_a_listener_does_not_wait_for_ever_to_be_one(
    far: PostgresEngine, proxy: Proxy
) -> None:
    """Nor may a shutdown, which can't cancel it there."""
    held = proxy.hold_reply("LISTEN", times=1)
    listening = far.storage.listener()
    assert listening is not None
    with pytest.raises(StorageUnavailableError, match="said nothing"):
        await listening.open()
    await listening.close()
    proxy.release(held)
    again = far.storage.listener()
    assert again is not None
    await again.open()
    conn: Any = again
    assert conn._conn.patience is None
    await again.close()
