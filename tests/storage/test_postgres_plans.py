"""What statements read: as much as they take, whatever the table holds and whatever its statistics say (rules 7 and 8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from tests.helpers.runners import eventually
from tests.storage.engines import PostgresEngine, Runner, mail, mails
from workers.job import ClaimedJob
from workers.lifecycle import Archive, Bury, Delete, Release, Retry, Transition, Wait
from workers.storage.base import Guard, Settlement
from workers.storage.postgres.checkout import PLANNER, settings
from workers.storage.postgres.claim_link import CLAIM_PLANNER
from workers.storage.postgres.claiming import HINTED, SUSPECTS, THOROUGH

BACKLOG = 100_000
FEW = 300  # rows: what a statement on ten jobs may read (the look for stray jobs takes 100 of each queue)
ROUNDS = (
    12  # psycopg prepares a statement after 5 of them, and the server keeps a plan after 5 more
)

FILL = f"""
INSERT INTO background_jobs (job_type, data, queue, priority, run_at, deduplicated, dedup_key)
SELECT CASE n % 4 WHEN 0 THEN 'odd' ELSE 'mail' END, '{{}}',
    CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN 'other' ELSE 'default' END, -(n % 3),
    CASE n % 20 WHEN 0 THEN now() + interval '1 hour' END,
    n % 10 = 0, CASE n % 10 WHEN 0 THEN n::text::bytea END
FROM generate_series(1, {BACKLOG}) AS n
"""


class Meter:
    """Counts the rows of the job table that other connections read."""

    def __init__(self, postgres: PostgresEngine) -> None:
        self.postgres = postgres
        self.runner = postgres.runner()

    async def read(self) -> int:
        flush = "SELECT pg_stat_force_next_flush()"
        async with self.postgres.pool.connection() as conn:
            await conn.execute(flush)
        self.postgres.conn.execute(flush)  # what the test itself has read is no statement's
        link = self.postgres.storage._claim_link  # type: ignore[attr-defined]
        if link._cursor is not None:  # claims are made on one of their own
            await link._cursor.connection.execute(flush)
        self.runner.control._fetch(flush)  # type: ignore[attr-defined]  # the control link's own connection
        query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'background_jobs'::regclass"
        ((rows,),) = self.postgres.conn.execute(query)
        return int(rows)


@pytest.fixture
async def meter(database_url: str, warm_server: None) -> AsyncIterator[Meter]:
    """A storage on one pool connection, and a runner."""
    async with PostgresEngine.opened(database_url, max_size=1) as engine:
        engine.conn.execute("ALTER TABLE background_jobs SET (autovacuum_enabled = off)")
        yield Meter(engine)


async def everything(meter: Meter, *, measure: bool) -> dict[str, int]:
    """Every statement of a runner on up to ten jobs; the rows that each of them read."""
    storage, runner, engine = meter.postgres.storage, meter.runner, meter.postgres
    high = {"priority": 9}
    await storage.enqueue([*mails(7, **high), *mails(4, deduplicated=True, **high)])
    reads: dict[str, int] = {}

    async def step(name: str, work: Callable[[], Any]) -> Any:
        before = await meter.read() if measure else 0
        result = work()
        if hasattr(result, "__await__"):
            result = await result
        if measure:
            reads[name] = await meter.read() - before
        return result

    async def take(name: str, limit: int, **settings: Any) -> list[ClaimedJob]:
        jobs: list[ClaimedJob] = await step(name, lambda: runner.take(limit, **settings))
        return jobs

    jobs = await take("thorough", 10)
    await step("complete", lambda: runner.complete(jobs[:1]))
    ends: list[Transition] = [
        Archive("completed"),
        Bury("over"),
        Delete(),
        Retry(60.0, "boom"),
        Wait(0.0),
        Release(),
    ]
    await step("settle", lambda: runner.settle(jobs[1:], *ends, *ends[3:]))
    hinted = await take("hinted", 4, thorough=False)
    await step(
        "release", lambda: runner.control.release([Guard(job.id, job.token) for job in hinted[:2]])
    )
    await step("release_claim", lambda: storage.release_claim(runner.session, hinted[-1].token))
    [job] = await take("one", 1)
    await step("transaction", lambda: transactional(meter, job))
    await storage.enqueue([mail(1, delay=1, **high), mail(2, queue=None, **high)])
    engine.conn.execute(
        "UPDATE background_jobs SET run_at = now() WHERE priority = 9 AND run_at IS NOT NULL"
    )
    await step("maintain", runner.maintain)
    victim = engine.runner("victim")
    await victim.take(5)
    engine.conn.execute("UPDATE worker_sessions SET alive = false WHERE id = %s", [victim.session])
    await step("rescue", runner.control.rescue)
    await step("claims", runner.control.claims)
    suspects = await take("suspects", 10, suspects=9)
    await runner.complete(suspects)
    await step("find", lambda: storage.find(jobs[0].id))
    twin = mail(5, deduplicated=True, delay=60, priority=8)
    await storage.enqueue([twin])
    await step("deduplicate", lambda: storage.enqueue([twin]))
    engine.conn.execute("DELETE FROM background_jobs WHERE priority > 0")
    return reads


async def transactional(meter: Meter, job: ClaimedJob) -> None:
    guard = Guard(job.id, job.token)
    async with meter.postgres.storage.transaction(meter.runner.session, guard) as run:
        assert run is not None
        await run.connection.execute("SELECT pg_stat_force_next_flush()")
        await run.finish(Settlement(guard, False, Delete()))


def fill(conn: psycopg.Connection, statistics: str) -> None:
    conn.execute(FILL)
    if statistics == "fresh":
        conn.execute("ANALYZE background_jobs")


@pytest.mark.parametrize("statistics", ["none", "of an empty table", "of other rows", "fresh"])
async def test_statements_read_what_they_take(meter: Meter, statistics: str) -> None:
    """Rule 8: a runner that begins on an empty table keeps its statements, prepared, when 100,000 rows come; and what the
    statistics say, none, old or fresh, makes no statement read the backlog."""
    conn = meter.postgres.conn
    # psycopg prepares a statement once more when a number needs a larger type: not in between, here
    conn.execute(
        "SELECT setval('background_jobs_id_seq', 1000000), setval('worker_sessions_id_seq', 100000)"
    )
    if statistics == "of an empty table":
        conn.execute(
            "INSERT INTO background_jobs (job_type, data) SELECT 'mail', '{}' FROM generate_series(1, 10)"
        )
        conn.execute("DELETE FROM background_jobs")
        conn.execute("VACUUM (ANALYZE) background_jobs")
    elif statistics == "of other rows":
        conn.execute(
            "INSERT INTO background_jobs (job_type, data, run_at, crashes, session_id)"
            " SELECT 'mail', '{}', now() - interval '1 day', 1, 7 FROM generate_series(1, 5000)"
        )
        conn.execute("VACUUM (ANALYZE) background_jobs")
        conn.execute("DELETE FROM background_jobs")
    for number in range(ROUNDS):
        await everything(meter, measure=False)
        if (
            statistics != "none" and number < ROUNDS - 2
        ):  # the pages are used again: the table stays small
            conn.execute("VACUUM background_jobs")
    fill(conn, statistics)
    reads = await everything(meter, measure=True)
    assert {name: rows for name, rows in reads.items() if rows > FEW} == {}


@pytest.fixture
def session(conn: psycopg.Connection) -> int:
    conn.execute(
        "INSERT INTO worker_sessions (id, name, lease_until) VALUES (1, 'x', now() + interval '1 hour')"
    )
    conn.execute("ALTER TABLE background_jobs SET (autovacuum_enabled = off)")
    return 1


COUNTERS = """
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relid = 'background_jobs'::regclass
"""


def test_a_claim_is_heap_only(conn: psycopg.Connection, session: int) -> None:
    """Rule 7: the claim of ordinary rows writes no index."""
    conn.execute(
        "INSERT INTO background_jobs (job_type, data, queue) SELECT 'mail', '{}', 'default' FROM generate_series(1, 2000)"
    )
    params = {
        "session": session,
        "token": 1,
        "queue": "default",
        "job_types": ["mail"],
        "limit": 500,
    }
    with conn.transaction():
        assert len(conn.execute(THOROUGH, params).fetchall()) == 500
        counters = conn.execute(COUNTERS).fetchone()
    assert counters == (500, 500)


def test_no_index_mentions_what_a_claim_changes(conn: psycopg.Connection) -> None:
    """Rule 7: neither as a key nor in a predicate; the deduplication key is NULL in ordinary rows, which are not in its
    index."""
    rows = conn.execute(
        """
        SELECT index.indexrelid::regclass::text, attribute.attname
        FROM pg_index AS index
        JOIN pg_depend AS mention ON mention.objid = index.indexrelid AND mention.classid = 'pg_class'::regclass
            AND mention.refobjid = index.indrelid
        JOIN pg_attribute AS attribute ON attribute.attrelid = index.indrelid AND attribute.attnum = mention.refobjsubid
        WHERE index.indrelid = 'background_jobs'::regclass
        """
    ).fetchall()
    mentioned = {column: index for index, column in rows}
    assert {"queue", "priority", "position", "run_at", "crashes"} <= mentioned.keys()
    assert not {"session_id", "claim_token"} & mentioned.keys()
    assert {index for index, column in rows if column == "dedup_key"} == {"background_jobs_dedup"}


def test_the_table_keeps_its_pages(conn: psycopg.Connection) -> None:
    """A queue that was emptied is not cut short: that takes an exclusive lock, just when it was busy."""
    size = "SELECT pg_relation_size('background_jobs')"
    conn.execute(
        "INSERT INTO background_jobs (job_type, data) SELECT 'mail', '{}' FROM generate_series(1, 5000)"
    )
    before = conn.execute(size).fetchone()
    conn.execute("DELETE FROM background_jobs")
    conn.execute("VACUUM background_jobs")
    assert conn.execute(size).fetchone() == before


@pytest.mark.parametrize(
    "columns",
    ["queue, run_at) SELECT 'mail', '{}', 'default', now()", "crashes) SELECT 'mail', '{}', 0"],
)
async def test_a_round_of_housekeeping_is_bounded(postgres: PostgresEngine, columns: str) -> None:
    """Rule 8: the lease is not renewed meanwhile. What is due, or has no queue, beyond that is told of."""
    insert = (
        f"INSERT INTO background_jobs (job_type, data, {columns} FROM generate_series(1, 10001)"
    )
    postgres.conn.execute(insert.encode())
    runner = postgres.runner()
    assert [runner.maintain().more for _ in range(3)] == [True, False, False]
    assert len(await runner.take(20_000)) == 10_001


PLANS = {
    "hinted": (HINTED, "background_jobs_fetch"),
    "thorough": (THOROUGH, "background_jobs_fetch"),
    "suspects": (SUSPECTS, "background_jobs_suspect"),
}


@pytest.mark.parametrize("scan", PLANS)
def test_claims_walk_one_index(conn: psycopg.Connection, session: int, scan: str) -> None:
    """Rule 8: in the order of the index, ending after k rows."""
    fill(conn, "none")
    conn.execute(
        "UPDATE background_jobs SET crashes = 1 WHERE id % 1000 = 3"
    ) if scan == "suspects" else None
    claim, index = PLANS[scan]
    params = {
        "session": session,
        "token": 1,
        "queue": "default",
        "job_types": ["mail"],
        "limit": 10,
    }
    params |= {"priorities": "{9,0}", "positions": "{1,1}", "suspects": 9}
    with conn.transaction():
        conn.execute(settings("SET LOCAL", CLAIM_PLANNER).encode())
        jobs = conn.execute(claim, params).fetchall()
        walked = conn.execute(
            "SELECT indexrelname, pg_stat_get_xact_tuples_returned(indexrelid) FROM pg_stat_user_indexes"
            " WHERE relid = 'background_jobs'::regclass AND pg_stat_get_xact_tuples_returned(indexrelid) > 0"
        ).fetchall()
    assert len(jobs) == 10
    rows: dict[str, int] = dict(walked)
    assert rows.pop(index) <= 20
    assert rows.keys() <= {"background_jobs_pkey"}
    assert sum(rows.values()) <= 20


async def test_settling_is_planned_by_our_settings(postgres: PostgresEngine) -> None:
    """Batches of a thousand are joined by hash, not each with each, though the planner expects a single row."""
    off = " AND ".join(f"current_setting('{name}') = 'off'" for name in PLANNER)
    postgres.conn.execute(
        f"""
        CREATE FUNCTION planned() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            ASSERT {off}, 'left to the planner: ' || TG_OP;
            RETURN NULL;
        END $$
        """
    )
    runner = postgres.runner()
    await postgres.storage.enqueue([*mails(4), *mails(1, deduplicated=True, priority=-1)])
    jobs = await runner.take()
    postgres.conn.execute(
        "CREATE TRIGGER planned BEFORE UPDATE OR DELETE ON background_jobs EXECUTE FUNCTION planned()"
    )
    ends = Archive("completed"), Bury("over"), Retry(60.0, "boom"), Release(), Release()
    assert len((await runner.settle(jobs, *ends)).written) == 5
    runner.maintain()
    assert runner.control.rescue() == []


async def test_completions_lock_rows_in_the_order_of_their_ids(
    postgres: PostgresEngine, database_url: str
) -> None:
    """Rule 5: not where they happen to lie, as a bitmap would, or two statements on the same rows could deadlock."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(200))
    jobs = await runner.take(200)
    low, high = jobs[0], jobs[-1]
    # from here on the lowest id is on the last page
    move = "UPDATE background_jobs SET data = jsonb_build_object('number', repeat('x', 7000)) WHERE id = %s"
    postgres.conn.execute("ALTER TABLE background_jobs ALTER data SET STORAGE PLAIN")
    postgres.conn.execute(move, [low.id])
    postgres.conn.execute("ANALYZE background_jobs")
    (lie,) = postgres.conn.execute(
        "SELECT array_agg(id ORDER BY ctid) FROM background_jobs"
    ).fetchone() or ((),)
    assert lie[-1] == low.id
    with psycopg.connect(database_url) as other, psycopg.connect(database_url) as third:
        other.execute("SELECT FROM background_jobs WHERE id = %s FOR UPDATE", [low.id])
        async with asyncio.TaskGroup() as group:
            group.create_task(_complete_by_bitmap(database_url, runner, jobs))
            await asyncio.to_thread(_until_locked, postgres.conn)
            third.execute("SELECT FROM background_jobs WHERE id = %s FOR UPDATE NOWAIT", [high.id])
            third.rollback()
            other.rollback()


async def _complete_by_bitmap(database_url: str, runner: Runner, jobs: list[ClaimedJob]) -> None:
    """Where it is left to the planner, it would take one."""
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        await conn.execute("SET random_page_cost = 1000")
        query = "SELECT workers_complete(%s, %s::bigint[], %s::bigint[], '{}')"
        given = [runner.session, [job.id for job in jobs], [job.token for job in jobs]]
        await conn.execute(query, given)  # raises unless it deletes them all


def _until_locked(conn: psycopg.Connection) -> None:
    query = """
    SELECT FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND query LIKE 'SELECT workers_complete%' AND datname = current_database()
    """
    eventually(lambda: conn.execute(query).fetchall())
