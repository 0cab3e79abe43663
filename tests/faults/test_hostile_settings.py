"""Faults 11, 13 and 18: a database whose settings are made for others, and a pool of one connection. Rules 1, 16, 17."""

from __future__ import annotations

from collections import Counter

import psycopg
from psycopg_pool import AsyncConnectionPool

from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Stage
from tests.helpers.history import History
from tests.helpers.runners import arrived, left
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


async def test_a_pool_of_one_connection_under_many_queues(
    conn: psycopg.Connection, database_url: str, history: History
) -> None:
    """Rule 17: nothing is lost, doubled or late, and nobody has to wait for the only connection for ever."""
    conn.execute(EFFECTS)
    known = {row[0] for row in conn.execute("SELECT name FROM pg_settings")}
    options = " ".join(
        f"-c{name}={value.replace(' ', '')}" for name, value in SETTINGS.items() if name in known
    )
    url = connection_url(database_url, options=options)
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
    verdict = history.check(ids)
    assert verdict.lost == verdict.unexpected == verdict.duplicated == verdict.overlapping == []
    starts = Counter(event.job for event in history.events("start"))
    assert starts == dict.fromkeys(ids, 1)
    assert Counter(job for (job,) in conn.execute("SELECT job FROM effects")) == dict.fromkeys(
        effects, 1
    )
    assert {event.session for event in history.events("start")} == {session}
    assert left(conn) == dict.fromkeys(left(conn), 0)
