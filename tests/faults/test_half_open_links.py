"""Links that die without a word: what the two ends are told to do about it, runners behind a frozen link, forked children.

Rules 17 and 18.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from anyio import to_thread

from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Stage
from tests.helpers.history import History
from tests.helpers.own_server import NoOwnServerError, OwnServer, own_server
from tests.helpers.proxy import Proxy, proxy_to
from tests.helpers.runners import arrived, eventually, hosted
from tests.helpers.server import connection_url
from workers import migrate
from workers.storage.postgres import session, transactions
from workers.storage.postgres.storage import PostgresStorage

TCP = "SELECT name, setting::int FROM pg_settings WHERE starts_with(name, 'tcp') ORDER BY 1"


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[OwnServer]:
    """A server that is reached over TCP: a unix socket has none of these settings."""
    try:
        with own_server(tcp=True) as started:
            migrate(started.dsn)
            yield started
    except NoOwnServerError as error:
        pytest.skip(str(error))


def client_end(conn: Any) -> dict[str, int]:
    """What the system does about a peer of this connection that is gone."""
    with contextlib.closing(socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM)) as s:
        options = {
            "idle": socket.TCP_KEEPIDLE,
            "interval": socket.TCP_KEEPINTVL,
            "count": socket.TCP_KEEPCNT,
            "user_timeout": socket.TCP_USER_TIMEOUT,
        }
        return {name: s.getsockopt(socket.IPPROTO_TCP, key) for name, key in options.items()}


async def test_both_ends_of_every_link_notice_a_peer_that_is_gone(tcp_server: OwnServer) -> None:
    """Rule 18: the server's end holds the lock, so it must be quick; that of a transaction holds rows."""
    storage: Any = PostgresStorage(tcp_server.tcp_dsn)
    await storage.open()
    control = storage.control()
    control.open("runner", 15.0)
    assert dict(control._fetch(TCP)) == {
        "tcp_keepalives_count": 3,
        "tcp_keepalives_idle": 1,
        "tcp_keepalives_interval": 1,
        "tcp_user_timeout": 5600,
    }
    ours = {"idle": 10, "interval": 5, "count": 3, "user_timeout": 30_000}
    assert client_end(control._link.conn) == ours
    for link in (storage._connector.connect(), await storage._connector.connect_async()):
        assert client_end(link) == ours
        shown = link.execute(TCP)
        rows = (await (await shown).fetchall()) if hasattr(shown, "__await__") else shown.fetchall()
        # no tcp_user_timeout: a job may be slow to read what it asked for
        assert [value for _, value in rows] == [3, 10, 5, 0]
        link.pgconn.finish()
    async with storage._pool.connection() as pooled:
        assert client_end(pooled) == ours
    control.close()
    await storage.close()


async def test_what_the_dsn_says_goes_before(tcp_server: OwnServer) -> None:
    """Somebody may know better what lies between."""
    storage: Any = PostgresStorage(
        connection_url(tcp_server.tcp_dsn, keepalives_idle="77", tcp_user_timeout="0")
    )
    link = storage._connector.connect()
    assert client_end(link) == {"idle": 77, "interval": 5, "count": 3, "user_timeout": 0}
    link.close()


# ----------------------------------------------------------------------------------------------- a frozen control connection


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxy_to(database_url) as started:
        yield started


def locked_by(conn: psycopg.Connection, session_id: int | None) -> int | None:
    """The backend that holds the lock of a session."""
    row = conn.execute(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = %s"
        " AND classid = workers_lock_class()::oid",
        [session_id],
    ).fetchone()
    return None if row is None else int(row[0])


async def test_a_runner_gets_over_a_half_open_control_link(
    conn: psycopg.Connection, proxy: Proxy, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes its session again on another one, works on, and can be shut down when that freezes too."""
    monkeypatch.setattr(session, "_LEAST_PATIENCE", 0.5)
    stage = Stage("here", history.add)
    async with hosted(proxy.url, stage, Brief, lease=1.5) as handle:
        before, number = locked_by(conn, handle.session), handle.session
        frozen = proxy.hold_reply("WITH renewed")
        await to_thread.run_sync(frozen.wait)
        after = await to_thread.run_sync(
            eventually, lambda: (pid := locked_by(conn, number)) != before and pid
        )
        job = Brief(key=1).enqueue(conn)
        await arrived(history, "end", where=lambda event: event.job == job)
        assert handle.session == number
        assert after
        # every statement of the link that there is now
        again = proxy.hold_reply("WITH renewed", times=100)
        await to_thread.run_sync(again.wait)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert conn.execute("SELECT count(*) FROM worker_sessions").fetchone() == (0,)


@pytest.mark.parametrize("kind", [Effect, EffectInThread])
async def test_a_commit_whose_reply_never_comes_keeps_no_worker(
    conn: psycopg.Connection,
    proxy: Proxy,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Effect] | type[EffectInThread],
) -> None:
    """The end of a transactional job: by then neither its timeout nor the shutdown could free its worker."""
    monkeypatch.setattr(transactions, "STATEMENT_SECONDS", 0.5)
    conn.execute(EFFECTS)
    async with hosted(proxy.url, Stage("here", history.add), kind, num_workers=1):
        held = proxy.hold_reply("COMMIT")
        first = kind(key=1).enqueue(conn)
        await to_thread.run_sync(held.wait)
        second = kind(key=2).enqueue(conn)
        await arrived(history, "end", where=lambda event: event.job == second)
        gone = lambda: not conn.execute("SELECT FROM background_jobs").fetchall()  # noqa: E731
        await to_thread.run_sync(eventually, gone)
    assert conn.execute("SELECT job FROM effects ORDER BY job").fetchall() == [(first,), (second,)]
    assert [event.job for event in history.events("start")] == [first, second]


# ------------------------------------------------------------------------------------------------------------------- forks

#: A runner's links, and a child as `multiprocessing` makes it by default on Linux, which outlives it.
FORKING = """
import asyncio, os, sys
from workers.storage.base import Guard
from workers.storage.postgres.storage import PostgresStorage

async def main(url):
    storage = PostgresStorage(url)
    await storage.open()
    control = storage.control()
    session = control.open("runner", 600.0)
    job, token = sys.argv[2:]
    await storage._checkout.fetch("UPDATE background_jobs SET session_id = %(session)s, claim_token = 1 RETURNING id",
                                  {"session": session})
    async with storage.transaction(session, Guard(int(job), int(token))):
        if os.fork():
            print(session, flush=True)
            sys.stdin.read()
        else:
            os.close(1)
            for conn in (control._link.conn,):
                conn.close()  # whatever a child does to them
            sys.stdin.read()
            os._exit(0)

asyncio.run(main(sys.argv[1]))
"""


def test_a_child_does_not_hold_what_a_dead_runner_held(
    conn: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    """Rule 18: not its lock, nor the rows of its transactions; and nothing that a child does disturbs its parent's links."""
    job = Brief(key=1).enqueue(conn)
    script = tmp_path / "forking.py"
    script.write_text(FORKING)
    reading, writing = os.pipe()
    with os.fdopen(reading) as ours, os.fdopen(writing, "w") as theirs:
        runner = subprocess.Popen(
            [sys.executable, str(script), database_url, str(job), "1"],
            stdin=ours,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert runner.stdout is not None
        session_id = int(runner.stdout.readline())
        assert locked_by(conn, session_id) is not None
        skipped = (
            "SELECT count(*) FROM (SELECT FROM background_jobs FOR UPDATE SKIP LOCKED) AS free"
        )
        assert conn.execute(skipped.encode()).fetchone() == (0,)
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        runner.stdout.close()
        eventually(lambda: locked_by(conn, session_id) is None, 5.0)
        eventually(lambda: conn.execute(skipped.encode()).fetchone() == (1,), 5.0)
        theirs.close()
