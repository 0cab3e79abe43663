"""Roles at work: everything that one is for is done as it, through the public API, and everything else is refused."""

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
        "COPY background_jobs TO STDOUT",
        "SELECT * FROM dead_jobs",
        "SELECT * FROM archived_jobs",
        "SELECT * FROM worker_sessions",
        "SELECT * FROM worker_claims",
        "SELECT * FROM workers_migrations",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') RETURNING id",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') RETURNING data",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}') ON CONFLICT (id) DO UPDATE SET data = '{}'",
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
        "INSERT INTO dead_jobs SELECT",
        "UPDATE background_jobs SET priority = 1",
        "DELETE FROM background_jobs",
        "TRUNCATE background_jobs",
        "LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE",
        "DROP TABLE background_jobs",
        "ALTER FUNCTION workers_enqueue RESET ALL",
        "ALTER FUNCTION workers_enqueue SECURITY INVOKER",
        "CREATE TABLE mine ()",
        "CREATE FUNCTION workers_notify(text, text, text) RETURNS void LANGUAGE sql AS ''",
        "SELECT setval('background_jobs_id_seq', 1)",
        "SELECT last_value FROM background_jobs_id_seq",
        "SELECT nextval('worker_sessions_id_seq')",
        "SELECT workers_complete(1, '{1}', '{1}', '{}')",
        "SELECT workers_dedup_key('a', '{}', 0::smallint)",
        "SELECT workers_check_jobs('a', 'a', '{}')",
    ],
)
def test_a_producer_does_nothing_else(producer: psycopg.Connection, statement: str) -> None:
    Note(number=1).enqueue(producer)
    with pytest.raises(InsufficientPrivilege), producer.transaction():
        producer.execute(statement.encode())


@pytest.mark.parametrize("role", ["enqueue", "worker", "readonly"])
def test_nobody_becomes_the_migrator(users: Users, role: str) -> None:
    with psycopg.connect(users.urls[role], autocommit=True) as connection:
        for statement in (
            f"SET ROLE {users.group('migrator')}",
            f"GRANT {users.group('migrator')} TO CURRENT_USER",
        ):
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement.encode())


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


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE background_jobs",
        "TRUNCATE dead_jobs",
        "DROP TABLE background_jobs",
        "DROP FUNCTION workers_complete",
        "ALTER TABLE background_jobs ADD COLUMN more text",
        "CREATE INDEX ON background_jobs (id)",
        "CREATE TRIGGER mine AFTER INSERT ON background_jobs EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TABLE mine ()",
        "DELETE FROM archived_jobs",
        "DELETE FROM workers_migrations",
        "INSERT INTO workers_migrations VALUES (9, 'x')",
        "SELECT setval('background_jobs_id_seq', 1)",
        "ALTER FUNCTION workers_enqueue RESET ALL",
    ],
)
def test_a_worker_changes_rows_only(users: Users, statement: str) -> None:
    with (
        psycopg.connect(users.urls["worker"], autocommit=True) as connection,
        pytest.raises(InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


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
        "SELECT workers_enqueue('mail', '{}')",
        "INSERT INTO background_jobs (job_type, data) VALUES ('a', '{}')",
        "UPDATE background_jobs SET priority = 1",
        "SELECT id FROM background_jobs FOR SHARE",
        "DELETE FROM dead_jobs",
        "TRUNCATE archived_jobs",
        "SELECT nextval('background_jobs_id_seq')",
        "CREATE TABLE mine ()",
    ],
)
def test_a_reader_changes_nothing(users: Users, statement: str) -> None:
    with (
        psycopg.connect(users.urls["readonly"], autocommit=True) as connection,
        pytest.raises(InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


# ------------------------------------------------------------------------------------------------------------- migrator


def test_a_migrator_repeats_it_all(users: Users) -> None:
    url = users.urls["migrator"]
    for _ in range(2):
        assert migrate(url) == []
        assert apply_roles(url, users.prefix) == [
            users.group(role) for role in ("enqueue", "worker", "readonly", "migrator")
        ]
