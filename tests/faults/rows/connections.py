"""Rows 9 and 10: the server ends connections of healthy runners; of every kind, and the one that keeps the session."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import end_all, judge_survivors, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Held
from tests.helpers.history import History, by, saying
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.producers import producing
from tests.helpers.runners import backends, eventually, left
from tests.helpers.server import connection_url

_TYPES, _WORKERS, _HELD = "brief,held,effect,effect_in_thread", 12, 6
_VICTIMS = "victim"
_PATIENCE = 60.0
#: Connections ended in a second.
_RATE = 5
#: Seconds until a session has its lock again, and until its runner has begun a new job.
_BACK_WITHIN = 1.5

_CONTROL = """
SELECT activity.pid
FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
WHERE held.locktype = 'advisory' AND held.objid = %s AND held.granted AND activity.application_name = %s
"""
_CLAIMS = "SELECT id, session_id, claim_token FROM background_jobs WHERE id = ANY(%s) ORDER BY id"


@row(
    "9",
    "backends terminated",
    "pg_terminate_backend of any connection of the runners, 5 a second for 2 minutes, under load: lost 0, no runner ends, "
    "no job of a living runner is begun again, transactional effects exactly once",
)
def backends_terminated(bench: Bench) -> Found:
    times = bench.pick(full=120 * _RATE, quick=10 * _RATE, tiny=2 * _RATE)
    # a transactional job that loses its connection before it began is put off for 5 s
    kinds: tuple[Any, ...] = bench.pick(
        full=(Brief, Effect, EffectInThread), quick=(Brief, Effect, EffectInThread), tiny=(Brief,)
    )
    found = Found(injected=0, jobs=0)
    with bench.stage() as (_, conn, history, workers):
        members, held, sessions = _at_work(conn, history, workers)
        began = time.monotonic()
        with producing(workers, *kinds) as producers:
            for _ in _paced(times):
                if pids := backends(conn, _VICTIMS):
                    (done,) = conn.execute(
                        "SELECT pg_terminate_backend(%s)", [bench.chance.choice(pids)]
                    ).fetchone() or (False,)
                    found.injected += done
            stopped = time.monotonic()
        for member in members:
            found.recovered(_longest_pause(history, member.name, began, stopped))
        _ended(found, conn, workers)
        judge_survivors(found, conn, history, producers, held, sessions=sessions)
        swept_away(found, conn, workers, _TYPES)
    return found


@row(
    "10",
    "control connection alone dies",
    "the one that holds a session's lock is ended, under load: it is taken again within 1.5 s, every claim is kept, twice 0",
)
def control_connection_ended(bench: Bench) -> Found:
    times = bench.pick(full=100, quick=10, tiny=2)
    within = _BACK_WITHIN * bench.margin
    found = Found(injected=times, jobs=0)
    with bench.stage() as (_, conn, history, workers):
        members, held, sessions = _at_work(conn, history, workers)
        ids = list(held)
        before = conn.execute(_CLAIMS, [held]).fetchall()
        with producing(workers, Brief, Effect, EffectInThread) as producers:
            for _ in range(times):
                victim = bench.chance.choice(members)
                ids.append(_control_ended(found, conn, history, victim, within))
        found.expect(conn.execute(_CLAIMS, [held]).fetchall() == before, "claims were not kept")
        _ended(found, conn, workers)
        judge_survivors(found, conn, history, producers, ids, sessions=sessions)
        swept_away(found, conn, workers, _TYPES)
    return found


def _at_work(
    conn: psycopg.Connection[Any], history: History, workers: Crew
) -> tuple[list[WorkerProcess], list[int | None], set[int]]:
    """Two runners with jobs that go on all the while, and one beside them that would take what looks abandoned."""
    conn.execute(EFFECTS)
    url = connection_url(workers.database_url, application_name=_VICTIMS)
    members = [workers.start(_TYPES, workers=_WORKERS, database_url=url) for _ in range(2)]
    sessions = {member.ready() for member in members}
    held = Held.enqueue_batch(conn, [Held(key=key) for key in range(_HELD)])
    history.wait_for("start", count=_HELD)
    beside = workers.start("later")
    beside.ready()
    return members, held, sessions


def _paced(times: int) -> Iterator[None]:
    """So often, `_RATE` a second, however long each takes."""
    pause, began = threading.Event(), time.monotonic()
    for number in range(times):
        pause.wait(max(0.0, began + number / _RATE - time.monotonic()))
        yield


def _control_ended(
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    victim: WorkerProcess,
    within: float,
) -> int:
    """Of one runner: it is back soon, under the same session, and begins new jobs."""
    session, mine = victim.ready(), by(victim.name)
    (control,) = conn.execute(_CONTROL, [session, _VICTIMS]).fetchall()
    began = time.monotonic()
    conn.execute("SELECT pg_terminate_backend(%s, 5000)", control)
    (back, *_) = history.wait_for(
        "log", where=lambda event: event.at > began and saying(f"session {session} goes on")(event)
    )
    found.recovered(back.at - began, within=within)
    new = Brief(key=-1).enqueue(conn) or 0
    enqueued = time.monotonic()
    (start, *_) = history.wait_for("start", where=lambda event: mine(event) and event.job >= new)
    found.recovered(start.at - enqueued, within=within)
    return new


def _longest_pause(history: History, name: str, since: float, until: float) -> float:
    """The longest time in which a runner began no job, while there were always some, in seconds."""
    starts = [event.at for event in history.events("start", where=by(name))]
    times = sorted([since, until, *(at for at in starts if since < at < until)])
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def _ended(found: Found, conn: psycopg.Connection[Any], workers: Crew) -> None:
    """Everything is finished; nobody has ended before they were told to, and no producer was in anybody's way."""
    failures = workers.history.events("fail")
    found.expect(not failures, f"producers failed: {failures[:3]}")
    for member in workers.members:
        member.open()
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    end_all(found, workers)
