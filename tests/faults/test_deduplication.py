"""Faults 13c and 13d: deduplicated jobs against open transactions, and given back twice at once. Rules 24 to 26."""

from __future__ import annotations

import signal

import psycopg
import pytest

from tests.helpers.fault_jobs import Brief, Seeing, Stage, Twin
from tests.helpers.history import History, by, saying
from tests.helpers.processes import Crew
from tests.helpers.runners import arrived, eventually, hosted, left

#: The lease of whoever sweeps: it looks three times in a lease.
SOON = 1.5


@pytest.mark.parametrize(("end", "seen"), [("COMMIT", "new"), ("ROLLBACK", "old")])
async def test_a_waiting_job_is_not_run_before_a_transaction_that_relies_on_it_ends(
    end: str, seen: str, conn: psycopg.Connection, database_url: str, history: History
) -> None:
    """Rule 24: who changes data and is told that an identical job waits can rely on it: that job sees the change."""
    conn.execute("CREATE TABLE setting (value text NOT NULL)")
    conn.execute("INSERT INTO setting VALUES ('old')")
    job, stage = Seeing(key=1).enqueue(conn), Stage("here", history.add)
    with psycopg.connect(database_url) as producer:
        producer.execute("UPDATE setting SET value = 'new'")
        assert Seeing(key=1).enqueue(producer) is None, "an identical one waits"
        async with hosted(database_url, stage, Brief, Seeing):
            # the runner looks, again and again, and takes what comes after that job
            for key in range(3):
                brief = Brief(key=key).enqueue(conn)
                await arrived(history, "end", where=lambda event: event.job == brief)  # noqa: B023
            assert [event.job for event in history.events("start")].count(job or 0) == 0
            producer.execute(end)
            (run,) = await arrived(history, "end", where=lambda event: event.job == job)
    assert run.text == seen
    assert left(conn) == dict.fromkeys(left(conn), 0)


def test_running_twins_that_are_rescued_at_once_become_one(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Rules 20 and 26: identical jobs may run beside each other, but only one of them may wait."""
    sweeper = workers.start("later", lease=SOON)
    first, _ = _two_running_twins(conn, workers, history)
    sweeper.ready()

    workers.members[-1].kill()

    (rescued,) = history.wait_for("rescued", where=by(sweeper.name))
    assert rescued.text == "2"
    assert _waiting(conn) == [(first, 1, 0)]
    assert not history.events("log", where=saying("ERROR"))
    heir = workers.start("twin")
    heir.open()
    eventually(lambda: left(conn)["background_jobs"] == 0)
    assert [event.job for event in history.events("end")] == [first]


def test_running_twins_that_are_released_at_once_become_one(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Rule 26, at a shutdown that does not wait for them: nothing is counted."""
    first, second = _two_running_twins(conn, workers, history, grace=0)
    (runner,) = workers.members

    runner.send(signal.SIGTERM)

    assert runner.wait() == 0
    (superseded,) = history.events("superseded")
    assert superseded.job == second
    assert _waiting(conn) == [(first, 0, 0)]
    assert not history.events("log", where=saying("ERROR"))
    assert left(conn) == dict.fromkeys(left(conn), 0) | {"background_jobs": 1}


def test_twins_in_two_workers_that_are_rescued_and_released_become_one(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Rule 26: one worker is killed while the other one gives its twin back."""
    killed, stopped = (workers.start("twin", workers=1, grace=0) for _ in range(2))
    sweeper = workers.start("later", lease=SOON)
    for member in workers.members:
        member.ready()
    first = Twin(key=1).enqueue(conn)
    history.wait_for("start", count=1)
    second = Twin(key=1).enqueue(conn)
    history.wait_for("start", count=2)

    killed.kill()
    stopped.send(signal.SIGTERM)

    assert stopped.wait() == 0
    history.wait_for("rescued", where=by(sweeper.name))
    assert len(_waiting(conn)) == 1
    assert {job for job, _, _ in _waiting(conn)} <= {first, second}
    assert not history.events("log", where=saying("ERROR"))


def _two_running_twins(
    conn: psycopg.Connection, workers: Crew, history: History, **options: object
) -> tuple[int | None, int | None]:
    runner = workers.start("twin", **options)
    runner.ready()
    first = Twin(key=1).enqueue(conn)
    history.wait_for("start", count=1)
    second = Twin(key=1).enqueue(conn)
    history.wait_for("start", count=2)
    return first, second


def _waiting(conn: psycopg.Connection) -> list[tuple[int, int, int]]:
    return conn.execute(
        "SELECT id, crashes, retries FROM background_jobs WHERE session_id IS NULL AND dedup_key IS NOT NULL"
    ).fetchall()
