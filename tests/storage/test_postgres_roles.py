"""Roles at work: everything that one is for is done as it, through the public API, and everything else is refused.

What is refused to all of them, or to all but the owner, is in test_postgres_roles_refused.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from psycopg_pool import AsyncConnectionPool

from tests.helpers.role_users import Users
from tests.helpers.running import drain, eventually, running
from workers import BackgroundJob, Discard, JobState, apply_roles, current_job, migrate
from workers.migrations import check_migrations
from workers.storage import open_storage

TABLES = (
    "background_jobs",
    "dead_jobs",
    "archived_jobs",
    "worker_sessions",
    "worker_claims",
    "workers_migrations",
)


@dataclass
class Note(BackgroundJob[None]):
    number: int
    archive = True

    async def run(self, ctx: None) -> None:
        pass


@dataclass
class Once(BackgroundJob[None]):
    number: int
    deduplicated = True

    async def run(self, ctx: None) -> None:
        pass


@dataclass
class Bad(BackgroundJob[None]):
    number: int

    async def run(self, ctx: None) -> None:
        raise Discard("no use")


@dataclass
class Again(BackgroundJob[None]):
    number: int
    backoff = 0.01

    async def run(self, ctx: None) -> None:
        if current_job().attempt == 1:
            raise ValueError("not yet")


@dataclass
class Inside(BackgroundJob[None]):
    number: int
    transactional = True

    async def run(self, ctx: None) -> None:
        connection = current_job().connection
        await Note(number=self.number).enqueue(connection)


# -------------------------------------------------------------------------------------------------------------- enqueue


def test_a_producer_enqueues(producer: psycopg.Connection, conn: psycopg.Connection) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    ids = [
        Note(number=1).enqueue(producer),
        Note(number=2).enqueue(producer, delay=60),
        Note(number=3).enqueue(producer, run_at=soon),
        *Note.enqueue_batch(producer, [Note(number=n) for n in range(4, 40)]),
        *Note.enqueue_batch(producer, [Note(number=n) for n in range(40, 43)], delay=5),
        Once(number=43).enqueue(producer),
    ]
    assert Once(number=43).enqueue(producer) is None
    assert Once.enqueue_batch(producer, [Once(number=43), Once(number=44)])[0] is None
    Note.enqueue_batch(producer, (Note(number=n) for n in range(45, 48)), return_ids=False)
    Note.enqueue_batch(producer, [Note(number=48)], return_ids=False, delay=5)
    stored = conn.execute(
        "SELECT id, (data->>'number')::int, run_at IS NULL FROM background_jobs ORDER BY position"
    ).fetchall()
    numbers = {number: (job_id, now) for job_id, number, now in stored}
    assert set(numbers) == set(range(1, 49))
    assert [numbers[n][0] for n in range(1, 44)] == ids
    assert {n for n, (_, now) in numbers.items() if not now} == {2, 3, 40, 41, 42, 48}


async def test_a_producer_enqueues_on_pools(users: Users, conn: psycopg.Connection) -> None:
    async with AsyncConnectionPool(users.urls["enqueue"], min_size=1, open=False) as pool:
        assert await Note(number=1).enqueue(pool)
        assert await Note.enqueue_batch(pool, [Note(number=2), Note(number=3)])
        await Note.enqueue_batch(pool, [Note(number=4)], return_ids=False)
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (4,)


def test_a_producer_enqueues_in_sql(producer: psycopg.Connection, conn: psycopg.Connection) -> None:
    for arguments in (
        "'mail', '{}'",
        "'mail', '{}', 'default', 5",
        "'mail', '{}', delay => '1 hour'",
        "'mail', '{}', deduplicated => true",
    ):
        ((job_id,),) = producer.execute(f"SELECT workers_enqueue({arguments})".encode())
        assert conn.execute("SELECT 1 FROM background_jobs WHERE id = %s", [job_id]).fetchone()
    same = "SELECT workers_enqueue('mail', '{}', deduplicated => true)"
    assert producer.execute(same).fetchone() == (None,)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT data FROM background_jobs",
        "SELECT id FROM background_jobs",
        "SELECT count(*) FROM background_jobs",
        "SELECT ctid FROM background_jobs",
        "SELECT FROM background_jobs",
        "SELECT id FROM background_jobs FOR SHARE",
        "EXPLAIN SELECT data FROM background_jobs",
        "CREATE TEMPORARY TABLE mine AS SELECT data FROM background_jobs",
        "CREATE TEMPORARY TABLE mine (data workers_payload)",
        "CREATE TEMPORARY TABLE mine (LIKE background_jobs)",
        "COPY background_jobs TO STDOUT",
        "COPY background_jobs (data) TO STDOUT",
        "COPY (SELECT data FROM dead_jobs) TO STDOUT",
        "SELECT * FROM dead_jobs",
        "SELECT data FROM dead_jobs",
        "SELECT * FROM archived_jobs",
        "SELECT data FROM archived_jobs",
        "SELECT * FROM worker_sessions",
        "SELECT * FROM worker_claims",
        "SELECT * FROM workers_migrations",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') RETURNING id",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') RETURNING data",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') ON CONFLICT (id) DO UPDATE SET data = '{}'",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') ON CONFLICT (id) DO NOTHING",
        *(
            f"INSERT INTO background_jobs (job_type, data, {column}) VALUES ('a', '{{}}', {value})"
            for column, value in {
                "id": "7",
                "position": "-7",
                "session_id": "1",
                "claim_token": "1",
                "crashes": "1",
                "retries": "1",
                "last_retry": "now()",
                "last_error": "'x'",
                "created_at": "now()",
                "deduplicated": "true",
                "dedup_key": "'x'",
            }.items()
        ),
        "COPY background_jobs FROM STDIN",
        "COPY background_jobs (id, job_type, data) FROM STDIN",
        "COPY background_jobs (job_type, data, crashes) FROM STDIN",
        "MERGE INTO background_jobs AS job USING (VALUES (1)) AS given (id) ON job.id = given.id"
        " WHEN MATCHED THEN DELETE",
        "MERGE INTO background_jobs AS job USING (VALUES (1)) AS given (id) ON job.id = given.id"
        " WHEN NOT MATCHED THEN INSERT (job_type, data) VALUES ('a', '{}')",
        "MERGE INTO background_jobs USING (VALUES (1)) AS given (id) ON false"
        " WHEN NOT MATCHED THEN INSERT (id, job_type, data) VALUES (id, 'a', '{}')",
        "UPDATE background_jobs SET priority = 1",
        "UPDATE background_jobs SET session_id = NULL",
        "UPDATE dead_jobs SET data = '{}'",
        "UPDATE worker_sessions SET alive = false",
        "DELETE FROM background_jobs",
        "LOCK TABLE background_jobs IN ACCESS SHARE MODE",
        "LOCK TABLE background_jobs IN ROW EXCLUSIVE MODE",
        "LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE",
        "SELECT last_value FROM background_jobs_id_seq",
        "SELECT last_value FROM background_jobs_position_seq",
        "SELECT nextval('worker_sessions_id_seq')",
        "SELECT workers_complete(1, '{1}', '{1}', '{}')",
        "SELECT workers_dedup_key('a', '{}', 0::smallint)",
        "SELECT workers_lock_class()",
    ],
)
def test_a_producer_does_nothing_else(producer: psycopg.Connection, statement: str) -> None:
    Note(number=1).enqueue(producer)
    with pytest.raises(InsufficientPrivilege), producer.transaction():
        producer.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM {}",
        "INSERT INTO {} SELECT",
        "COPY {} FROM STDIN",
        "DELETE FROM {}",
        "LOCK TABLE {} IN ACCESS SHARE MODE",
    ],
)
def test_a_producer_uses_no_other_table(producer: psycopg.Connection, statement: str) -> None:
    for table in TABLES[1:]:
        with pytest.raises(InsufficientPrivilege), producer.transaction():
            producer.execute(statement.format(table).encode())


# --------------------------------------------------------------------------------------------------------------- worker


async def test_a_runner_has_what_it_needs(users: Users, conn: psycopg.Connection) -> None:
    """Every kind of end, sessions, wake-ups, jobs that enqueue, and a dead letter that gets another life."""
    types: tuple[Any, ...] = (Note, Once, Bad, Again, Inside)
    url = users.urls["worker"]
    async with running(url, *types, poll=30):
        with psycopg.connect(users.urls["enqueue"], autocommit=True) as producer:
            for job_type in types:
                job_type.enqueue_batch(producer, [job_type(number=n) for n in range(3)])
        await eventually(conn, "SELECT count(*) FROM background_jobs", [(0,)])
    assert conn.execute("SELECT count(*) FROM archived_jobs").fetchone() == (6,)
    assert conn.execute("SELECT count(*) FROM worker_sessions").fetchone() == (0,)
    dead = [row[0] for row in conn.execute("SELECT id FROM dead_jobs")]
    assert len(dead) == 3
    async with open_storage(url) as storage:
        assert sorted(await storage.requeue(dead)) == sorted(dead)
    await drain(url, *types)
    assert conn.execute("SELECT count(*) FROM dead_jobs").fetchone() == (3,)


# ------------------------------------------------------------------------------------------------------------- readonly


async def test_a_reader_looks(users: Users, conn: psycopg.Connection) -> None:
    job_id = Note(number=1).enqueue(conn)
    assert job_id is not None
    url = users.urls["readonly"]
    check_migrations(url)
    async with open_storage(url) as storage:
        assert [queue.available for queue in await storage.stats()] == [1]
        assert [job.id for job in await storage.list_jobs(JobState.AVAILABLE)] == [job_id]
        assert await storage.find(job_id)
        assert await storage.failed_jobs() == (0, [])


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT workers_channel()",
        "SELECT workers_complete(1, '{1}', '{1}', '{}')",
        "SELECT workers_dedup_key('mail', '{}', 0::smallint)",
        "SELECT workers_enqueue('mail', '{}')",
        "SELECT workers_enqueue_deduplicated('mail', ARRAY['{}'], 0::smallint, 'default', NULL)",
        "SELECT workers_lock_class()",
        "SELECT workers_notify('default', 0::smallint, 1)",
        "SELECT workers_run_at(NULL, 1)",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}')",
        "UPDATE background_jobs SET priority = 1",
        "UPDATE dead_jobs SET reason = 'none'",
        "MERGE INTO background_jobs AS job USING (VALUES (1)) AS given (id) ON job.id = given.id"
        " WHEN MATCHED THEN DELETE",
        "SELECT nextval('background_jobs_id_seq')",
        "SELECT nextval('background_jobs_position_seq')",
        "SELECT nextval('worker_sessions_id_seq')",
        "SELECT last_value FROM background_jobs_id_seq",
    ],
)
def test_a_reader_changes_nothing(users: Users, statement: str) -> None:
    with (
        psycopg.connect(users.urls["readonly"], autocommit=True) as connection,
        pytest.raises(InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO {} SELECT",
        "COPY {} FROM STDIN",
        "DELETE FROM {}",
        "SELECT FROM {} FOR KEY SHARE",
        "SELECT FROM {} FOR UPDATE",
        "LOCK TABLE {} IN ROW SHARE MODE",
        "LOCK TABLE {} IN ROW EXCLUSIVE MODE",
    ],
)
def test_a_reader_changes_no_table(users: Users, statement: str) -> None:
    with psycopg.connect(users.urls["readonly"], autocommit=True) as connection:
        for table in TABLES:
            with pytest.raises(InsufficientPrivilege), connection.transaction():
                connection.execute(statement.format(table).encode())


# ------------------------------------------------------------------------------------------------------------- migrator


def test_a_migrator_repeats_it_all(users: Users) -> None:
    url = users.urls["migrator"]
    for _ in range(2):
        assert migrate(url) == []
        assert apply_roles(url, users.prefix) == [
            users.group(role) for role in ("enqueue", "worker", "readonly", "migrator")
        ]
