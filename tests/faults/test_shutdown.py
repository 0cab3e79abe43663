"""Fault 20: signals at bad moments. Rules 2, 28 and 29; guarantee 6."""

from __future__ import annotations

import signal

import psycopg

from tests.helpers.fault_jobs import Brief, Held
from tests.helpers.history import History, saying
from tests.helpers.processes import Crew
from tests.helpers.proxy import proxy_to
from tests.helpers.runners import left

CLAIM, ENDING = "INTO worker_claims", "finishing the jobs that run"


def test_a_runner_that_is_told_to_stop_while_it_claims_orphans_nothing(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Rule 29: what its last claim brought is run or given back; the reply is waited for."""
    with proxy_to(workers.database_url) as proxy:
        runner = workers.start("brief", workers=4, database_url=proxy.url)
        runner.ready()
        ids = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(200)])
        history.wait_for("end", count=len(ids))
        claim = proxy.hold_reply(CLAIM, rows=True)
        ids += Brief.enqueue_batch(conn, [Brief(key=key) for key in range(200)])
        claim.wait()
        runner.send(signal.SIGTERM)
        history.wait_for("log", where=saying(ENDING))
        proxy.release(claim)
        assert runner.wait() == 0
    stats = conn.execute(
        "SELECT count(session_id), count(claim_token), sum(retries + crashes) FROM background_jobs"
    )
    assert stats.fetchone() == (0, 0, 0)
    remaining = left(conn)["background_jobs"]
    assert left(conn) == dict.fromkeys(left(conn), 0) | {"background_jobs": remaining}
    last = workers.start("brief", "--until-empty")
    assert last.wait() == 0
    verdict = history.check(ids)
    assert verdict.lost == verdict.duplicated == verdict.unexpected == []
    assert len(history.events("end")) == len(ids)


def test_runners_that_are_stopped_all_the_time_orphan_nothing(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Guarantee 6: a stop at any moment counts nothing, loses nothing and doubles nothing."""
    ids = Brief.enqueue_batch(conn, [Brief(key=key, seconds=0.002) for key in range(800)])
    for number in range(1, 3):
        runner = workers.start("brief")
        history.wait_for("start", count=number * 250)
        runner.send(signal.SIGTERM)
        assert runner.wait() == 0
        counted = conn.execute(
            "SELECT count(session_id), sum(retries + crashes) FROM background_jobs"
        ).fetchone()
        assert counted == (0, 0)
        assert left(conn)["worker_sessions"] == left(conn)["worker_claims"] == 0
    assert workers.start("brief", "--until-empty").wait() == 0
    assert sorted(event.job for event in history.events("start")) == sorted(ids)  # type: ignore[type-var]
    assert history.check(ids).lost == []


def test_the_second_signal_gives_running_jobs_back_at_once(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Guarantee 6: they are available again, and nothing is counted."""
    runner = workers.start("held", grace=600)
    runner.ready()
    ids = Held.enqueue_batch(conn, [Held(key=key) for key in range(5)])
    history.wait_for("start", count=5)
    runner.send(signal.SIGTERM)
    history.wait_for("log", where=saying(ENDING))
    assert left(conn)["worker_sessions"] == 1, "it waits for them"
    runner.send(signal.SIGINT)
    assert runner.wait() == 0
    rows = conn.execute(
        "SELECT id, session_id, run_at, retries, crashes FROM background_jobs ORDER BY id"
    )
    assert rows.fetchall() == [(job, None, None, 0, 0) for job in ids]
    assert left(conn) == dict.fromkeys(left(conn), 0) | {"background_jobs": 5}
