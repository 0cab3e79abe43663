"""Faults 11, 13 and 18: a database whose settings are made for others, and a pool of one connection. Rules 1, 16, 17."""

from __future__ import annotations

from collections import Counter

import psycopg
import pytest
from anyio import to_thread
from psycopg_pool import AsyncConnectionPool

from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Held, Stage
from tests.helpers.history import History, check
from tests.helpers.runners import arrived, eventually, left
from tests.helpers.server import connection_url
from workers import Runner

SETTINGS = {
    "default_transaction_isolation": "serializable",
    "statement_timeout": "200ms",
    "lock_timeout": "200ms",
    "idle_in_transaction_session_timeout": "200ms",
    "idle_session_timeout": "200ms",
}
QUEUES = ("one", "two", "three", "four")


@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["plain", "hostile"])
async def test_a_pool_of_one_connection_under_many_queues(
    settings: dict[str, str], conn: psycopg.Connection, database_url: str, history: History
) -> None:
    """Rule 17: nothing is lost, doubled or late, and nobody has to wait for the only connection for ever."""
    conn.execute(EFFECTS)
    known = {row[0] for row in conn.execute("SELECT name FROM pg_settings")}
    options = " ".join(
        f"-c{name}={value.replace(' ', '')}" for name, value in settings.items() if name in known
    )
    url = connection_url(database_url, options=options) if options else database_url
    stage = Stage("here", history.add)
    brief, effects = [], []
    async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
        runner = Runner(pool, stage)
        for job_class in (Brief, Effect, EffectInThread):
            runner.register_job_type(job_class)
        for queue in QUEUES:
            runner.configure_queue(queue, num_workers=3, poll_interval=0.5)
        async with runner.start() as handle:
            for round_number in range(2):
                for queue in QUEUES:
                    brief += Brief.enqueue_batch(
                        conn, [Brief(key=key, seconds=0.005) for key in range(30)], queue=queue
                    )
                    # longer than each of the timeouts: the job's transaction is nobody's idle one
                    effects += Effect.enqueue_batch(
                        conn, [Effect(key=key, seconds=0.3) for key in range(2)], queue=queue
                    )
                    effects += EffectInThread.enqueue_batch(
                        conn,
                        [EffectInThread(key=key, seconds=0.3) for key in range(2)],
                        queue=queue,
                    )
                total = (round_number + 1) * (len(QUEUES) * 34)
                await arrived(history, "end", count=total)
            session = handle.session
    ids = [*brief, *effects]
    verdict = check(history.events(), ids)
    assert verdict.lost == verdict.unexpected == verdict.duplicated == verdict.overlapping == []
    starts = Counter(event.job for event in history.events("start"))
    assert starts == dict.fromkeys(ids, 1)
    assert Counter(job for (job,) in conn.execute("SELECT job FROM effects")) == dict.fromkeys(
        effects, 1
    )
    assert {event.session for event in history.events("start")} == {session}
    assert left(conn) == dict.fromkeys(left(conn), 0)


async def test_a_completion_that_has_to_wait_for_a_lock_is_written_in_the_end(
    conn: psycopg.Connection, database_url: str, history: History
) -> None:
    """Rules 14 and 17: it is tried again for as long as it takes, other queues go on, and the job is not run again."""
    url = connection_url(database_url, options="-clock_timeout=200ms -cstatement_timeout=200ms")
    stage = Stage("here", history.add)
    runner = Runner(url, stage).register_job_type(Held).register_job_type(Brief)
    async with runner.start():
        job = Held(key=1).enqueue(conn)
        await arrived(history, "start")
        with psycopg.connect(database_url) as blocker:
            blocker.execute("SELECT FROM background_jobs WHERE id = %s FOR UPDATE", [job])
            stage.open()
            await arrived(history, "end")
            await to_thread.run_sync(eventually, lambda: _blocked(conn))
            other = Brief(key=1).enqueue(conn)
            await arrived(history, "start", where=lambda event: event.job == other)
            blocker.rollback()
    starts = Counter(event.job for event in history.events("start"))
    assert starts == {job: 1, other: 1}
    assert left(conn) == dict.fromkeys(left(conn), 0)


def _blocked(conn: psycopg.Connection) -> bool:
    waiting = (
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%complete%%'"
    )
    return bool(conn.execute(waiting, []).fetchall())
