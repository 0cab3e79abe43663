"""Faults 9 and 10: the server ends connections of a healthy runner. Rules 14, 17 and 19; guarantee 4."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter

import psycopg

from tests.faults.conftest import Say
from tests.helpers.fault_jobs import Brief, Held
from tests.helpers.history import History, by, check, saying
from tests.helpers.processes import Crew
from tests.helpers.runners import backends, left
from tests.helpers.server import connection_url

#: What row 10 of the faults allows, and something for a busy machine.
BACK_WITHIN = 2.0

CONTROL = """
SELECT activity.pid
FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
WHERE held.locktype = 'advisory' AND held.objid = %s AND activity.application_name = %s
"""


def test_the_session_is_taken_again_when_only_its_connection_is_ended(
    conn: psycopg.Connection, workers: Crew, history: History, say: Say
) -> None:
    """Rule 19: the same session, the same claims, no job started twice, and it works on at once."""
    runner = workers.start("brief,held", workers=20, database_url=_named(workers, "victim"))
    session = runner.ready()
    other = workers.start("held")
    other.ready()
    held = Held.enqueue_batch(conn, [Held(key=key) for key in range(12)])
    history.wait_for("start", count=len(held))
    before, delays = _claims(conn), []

    for round_number in range(1, 4):
        (row,) = conn.execute(CONTROL, [session, "victim"]).fetchall()
        ended_at = time.monotonic()
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", row)
        back = history.wait_for(
            "log", count=round_number, where=saying(f"session {session} goes on")
        )
        job = Brief(key=round_number).enqueue(conn)
        (started, *_) = history.wait_for("start", where=lambda event: event.job == job)  # noqa: B023
        delays.append((back[-1].at - ended_at, started.at - ended_at))

    back_after, started_after = map(max, zip(*delays, strict=True))
    say(f"back after {back_after:.2f} s, a new job started after {started_after:.2f} s")
    assert max(back_after, started_after) < BACK_WITHIN
    assert [claim for claim in _claims(conn) if claim[0] in held] == before
    assert conn.execute("SELECT id FROM worker_sessions WHERE NOT alive").fetchall() == []
    runner.open()
    other.open()
    history.wait_for("end", count=len(held) + 3)
    for member in workers.members:
        member.send(signal.SIGTERM)
    assert [member.wait() for member in workers.members] == [0, 0]
    starts = Counter(event.job for event in history.events("start"))
    assert len(starts) == len(held) + 3
    assert set(starts.values()) == {1}
    assert history.events("rescued", "session lost", "fenced") == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


def test_a_runner_outlives_the_end_of_any_of_its_connections(
    conn: psycopg.Connection, workers: Crew, history: History, say: Say
) -> None:
    """Rules 14 and 17: while it drains, connections of every kind are ended; nothing is lost, no job runs twice."""
    runner = workers.start("brief", database_url=_named(workers, "victim"), workers=4)
    other = workers.start("later")  # it sweeps, and would take what looks abandoned
    session = runner.ready()
    other.ready()
    ids = Brief.enqueue_batch(conn, [Brief(key=key, seconds=0.01) for key in range(500)])
    chance, ended = random.Random(1), 0
    for number in range(1, 26):
        history.wait_for("end", count=number * 18)
        if pids := backends(conn, "victim"):
            ended += 1
            conn.execute("SELECT pg_terminate_backend(%s)", [chance.choice(pids)])

    history.wait_for("end", count=len(ids))
    last = Brief(key=-1).enqueue(conn)
    history.wait_for("end", where=lambda event: event.job == last)
    for member in workers.members:
        member.send(signal.SIGTERM)
    assert [member.wait() for member in workers.members] == [0, 0]
    say(f"{ended} connections ended while {len(ids)} jobs ran")
    starts = Counter(event.job for event in history.events("start"))
    assert starts == dict.fromkeys([*ids, last], 1), "each job ran, and ran once"
    assert check(history.events(), [*ids, last]).lost == []
    assert history.events("rescued", "session lost", "fenced") == []
    assert {event.session for event in history.events("start", where=by(runner.name))} == {session}
    assert left(conn) == dict.fromkeys(left(conn), 0)


def _named(workers: Crew, name: str) -> str:
    return connection_url(workers.database_url, application_name=name)


def _claims(conn: psycopg.Connection) -> list[tuple[int, int, int]]:
    return conn.execute(
        "SELECT id, session_id, claim_token FROM background_jobs WHERE session_id IS NOT NULL ORDER BY id"
    ).fetchall()
