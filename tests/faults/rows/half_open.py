"""Row 8: links that are half open, as the other end is gone without a word."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import psycopg

from tests.faults.harness import Bench, CannotRunError, Found, row
from tests.helpers.far_end import NETWORK, FarEnd, NoNamespaceError, far_end
from tests.helpers.fault_jobs import Held
from tests.helpers.history import Event, History, by
from tests.helpers.own_server import OwnServer, own_server
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left
from tests.helpers.server import connection_url
from workers.storage.postgres.control_link import USER_TIMEOUT

_MOST_JOBS = 8
#: Until the server has given up the session's link, and until the heir has looked, has looked again, and has claimed.
_WITHIN = USER_TIMEOUT + 2.0
#: So long that it has no part in this.
_LEASE = 60.0
#: The backend that holds the lock of a session, and when it last had something to say.
_BACKEND = """
SELECT activity.state_change
FROM pg_locks AS lock JOIN pg_stat_activity AS activity USING (pid)
WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objid = %s AND lock.classid = workers_lock_class()::oid
    AND activity.state = 'idle'
"""
_SLEEP_UNTIL = "SELECT pg_sleep_until(%s + 1.5 * interval '1 second')"


@row(
    "8",
    "half-open link",
    "the address of a worker's network is deleted just after a reply to its session's link and 1.5 s after one: its jobs "
    "start on another one within tcp_user_timeout (5.6 s) and 2 s",
)
def half_open_links(bench: Bench) -> Found:
    # the smallest one only just after a reply: seconds are what this takes
    rounds, number = bench.pick(full=(5, 4), quick=(1, 4), tiny=(1, 1))
    found = Found(injected=rounds * number, jobs=0)
    try:
        with own_server(tcp=True, network=NETWORK) as server:
            for _ in range(rounds):
                _one(bench, found, server, number)
    except NoNamespaceError as error:
        raise CannotRunError(str(error)) from error
    return found


def _one(bench: Bench, found: Found, server: OwnServer, number: int) -> None:
    with (
        contextlib.ExitStack() as stack,
        bench.database(server.dsn) as url,
        psycopg.connect(url, autocommit=True) as conn,
        bench.history() as history,
        bench.workers(url, history) as workers,
    ):
        room = [bench.chance.randrange(1, _MOST_JOBS + 1) for _ in range(number)]
        ends = [stack.enter_context(far_end()) for _ in range(number)]
        victims = [
            workers.start(
                "held",
                workers=jobs,
                lease=_LEASE,
                network=end.name,
                database_url=connection_url(url, host=end.near, sslmode="disable"),
            )
            for end, jobs in zip(ends, room, strict=True)
        ]
        sessions = [victim.ready() for victim in victims]
        ids = Held.enqueue_batch(conn, [Held(key=key) for key in range(sum(room))])
        started = history.wait_for("start", count=len(ids))
        heir = workers.start("held", workers=len(ids))
        heir.ready()
        gone: dict[str, float] = {}
        cuts = [
            (*each, n % 2 > 0) for n, each in enumerate(zip(victims, ends, sessions, strict=True))
        ]
        bench.chance.shuffle(cuts)
        for victim, end, session, late in cuts:
            # whatever the heir is doing just then
            conn.execute("SELECT pg_sleep(%s)", [bench.chance.random()])
            gone[victim.name] = _cut_off(conn, victim, end, session, late=late)
            history.add(Event(what="frozen", process=victim.name, at=gone[victim.name]))
        again = history.wait_for("start", count=len(ids), where=by(heir.name))
        at = {event.job: event.at for event in again}
        for event in started:
            found.recovered(at[event.job] - gone[event.process], within=_WITHIN * bench.margin)
        _ended(found, conn, history, workers, ids)
        found.jobs += len(ids)


def _cut_off(
    conn: psycopg.Connection[Any], victim: WorkerProcess, end: FarEnd, session: int, *, late: bool
) -> float:
    """Take its address away just after a reply to its session's link, or 1.5 s after one; when that was."""

    def last_reply() -> Any:
        row = conn.execute(_BACKEND, [session]).fetchone()
        return row and row[0]

    before = last_reply()
    reply = eventually(lambda: (now := last_reply()) != before and now)
    if late:  # it has something to say each second
        victim.send(signal.SIGSTOP)
        conn.execute(_SLEEP_UNTIL, [reply])
    end.take_address()
    gone = time.monotonic()
    if late:
        victim.send(signal.SIGCONT)
    return gone


def _ended(
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
    ids: list[int | None],
) -> None:
    """Those that were cut off are killed, and the heir finishes everything."""
    *victims, heir = workers.members
    for victim in victims:
        victim.kill()
    heir.open()
    eventually(
        lambda: not any(count for table, count in left(conn).items() if table != "worker_sessions")
    )
    heir.send(signal.SIGTERM)
    found.expect(heir.wait() == 0, "the heir did not end well")
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
    found.judge(history.check(ids))
