"""Migrations: each once, in one transaction, in the current schema, whoever calls and how many at once."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from workers import migrations
from workers.errors import MigrationError, UnsupportedConnectionError
from workers.migrations import check_migrations, migrate, migrations_sql
from workers.roles import apply_roles

NAMES = [m.name for m in migrations._load()]
#: All but the one that says what was applied.
TABLES = {"background_jobs", "worker_sessions", "worker_claims", "dead_jobs", "archived_jobs"}


def tables(conn: psycopg.Connection) -> set[str]:
    rows = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    return {name for (name,) in rows}


async def blocked(conn: psycopg.AsyncConnection, pid: int) -> None:
    """Return once the backend `pid` waits for a lock: the database is asked until it says so."""
    blockers: list[int] = []
    while not blockers:
        cursor = await conn.execute("SELECT pg_blocking_pids(%s)", [pid])
        ((blockers,),) = await cursor.fetchall()


def test_first_call_applies_all_and_second_none(raw_database_url: str) -> None:
    assert migrate(raw_database_url) == NAMES
    assert migrate(raw_database_url) == []
    with psycopg.connect(raw_database_url) as conn:
        assert {"background_jobs", "workers_migrations"} <= tables(conn)
        rows = conn.execute("SELECT name FROM workers_migrations ORDER BY version")
        assert [name for (name,) in rows] == NAMES


def test_open_transaction_is_joined(raw_database_url: str) -> None:
    with psycopg.connect(raw_database_url) as conn:
        conn.execute("SELECT 1")
        assert migrate(conn) == NAMES
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        conn.rollback()
        assert tables(conn) == set()


@pytest.mark.parametrize("autocommit", [True, False])
def test_idle_connection_is_committed(raw_database_url: str, autocommit: bool) -> None:
    with psycopg.connect(raw_database_url, autocommit=autocommit) as conn:
        assert migrate(conn) == NAMES
        assert conn.info.transaction_status == TransactionStatus.IDLE
    with psycopg.connect(raw_database_url) as other:
        assert migrate(other) == []


async def test_async_connection(raw_database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(raw_database_url) as conn:
        with pytest.raises(MigrationError):
            await check_migrations(conn)
        assert await migrate(conn) == NAMES
        assert conn.info.transaction_status == TransactionStatus.IDLE
        assert await migrate(conn) == []
        await check_migrations(conn)


def test_settings_of_the_connection_do_not_matter(raw_database_url: str) -> None:
    with psycopg.connect(raw_database_url, row_factory=dict_row, prepare_threshold=0) as conn:
        assert migrate(conn) == NAMES
        check_migrations(conn)


@pytest.mark.parametrize("level", [None, psycopg.IsolationLevel.SERIALIZABLE])
def test_concurrent_callers_apply_once(
    raw_database_url: str, level: psycopg.IsolationLevel | None
) -> None:
    barrier = threading.Barrier(4)
    results: list[list[str]] = []

    def call() -> None:
        with psycopg.connect(raw_database_url) as conn:
            conn.isolation_level = level
            barrier.wait(10)
            results.append(migrate(conn))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[], [], [], NAMES]


async def test_second_caller_waits_for_the_first_transaction(raw_database_url: str) -> None:
    connect = psycopg.AsyncConnection.connect
    async with await connect(raw_database_url) as first, await connect(raw_database_url) as second:
        await first.execute("SELECT 1")
        assert await migrate(first) == NAMES
        waiting = asyncio.ensure_future(migrate(second))
        await blocked(first, second.info.backend_pid)
        await first.rollback()
        assert await waiting == NAMES


def test_who_finds_nothing_to_do_waits_for_nobody(database_url: str) -> None:
    """Any user of the database may hold that lock, and applications call this at each start."""
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url) as conn:
        ((schema,),) = holder.execute(migrations.SCHEMA_OID).fetchall()
        holder.execute(migrations.LOCK, [schema])
        conn.execute("SET lock_timeout = '1s'")
        assert migrate(conn) == []


def test_tables_are_not_waited_for_without_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all who come after would wait, too; nothing is changed, and it can be tried again."""
    monkeypatch.setattr(migrations, "BE_BRIEF", migrations.BE_BRIEF.replace("'5s'", "'50ms'"))
    next_one = migrations.Migration(9999, "9999_next", b"ALTER TABLE background_jobs ADD x int")
    monkeypatch.setattr(migrations, "_load", lambda: [next_one])
    with psycopg.connect(database_url) as job, psycopg.connect(database_url) as conn:
        job.execute("SELECT FROM background_jobs FOR UPDATE")
        conn.execute("SET statement_timeout = '10s'")
        conn.commit()
        with pytest.raises(MigrationError, match="somebody's transaction"):
            migrate(conn)
        assert conn.execute("SELECT workers_enqueue('mail')").fetchone() == (1,)
        job.rollback()
        conn.commit()
        assert migrate(conn) == ["9999_next"]


@pytest.fixture
def to_be_swept(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database whose next migration changes all tables, in the order of their names."""
    change = "ALTER TABLE {} ADD x int"
    sweep = ";".join(change.format(table) for table in sorted(TABLES))
    found = [migrations.Migration(9999, "9999_sweep", sweep.encode())]
    monkeypatch.setattr(migrations, "_load", lambda: found)
    return database_url


@pytest.mark.parametrize(("held", "wanted"), list(permutations(sorted(TABLES), 2)))
async def test_tables_are_taken_without_a_deadlock(
    to_be_swept: str, held: str, wanted: str
) -> None:
    """Whoever uses one of them and then another goes on, before the migration or after it, and so does the migration."""
    connect = psycopg.AsyncConnection.connect
    async with (
        await connect(to_be_swept) as runner,
        await connect(to_be_swept) as conn,
        await connect(to_be_swept, autocommit=True) as asking,
    ):
        await runner.execute(f"LOCK TABLE {held} IN ROW EXCLUSIVE MODE")
        migrating = asyncio.ensure_future(migrate(conn))
        await blocked(asking, conn.info.backend_pid)
        await runner.execute(f"LOCK TABLE {wanted} IN ROW EXCLUSIVE MODE")
        await runner.commit()
        assert await migrating == ["9999_sweep"]


def test_a_transaction_that_is_joined_has_all_tables_and_its_own_settings(
    to_be_swept: str,
) -> None:
    with psycopg.connect(to_be_swept) as conn:
        conn.execute("SET LOCAL lock_timeout = '1234ms'")
        migrate(conn)
        (setting,) = conn.execute("SHOW lock_timeout").fetchone() or ("",)
        assert setting == "1234ms"
        rows = conn.execute(
            "SELECT relation::regclass::text FROM pg_locks"
            " WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock'"
        )
        locked = {name for (name,) in rows}
        assert locked & tables(conn) == tables(conn) - {"workers_migrations"} == TABLES


def test_no_notices(raw_database_url: str) -> None:
    with psycopg.connect(raw_database_url) as conn:
        notices: list[str | None] = []
        conn.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
        migrate(conn)
        migrate(conn)
        assert notices == []


def test_each_schema_is_migrated_by_itself(raw_database_url: str, raw_schema: str) -> None:
    migrate(raw_database_url)
    with psycopg.connect(raw_database_url) as conn:
        inner = sql.Identifier(f"{raw_schema}_Inner")  # a name that needs its quotes
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(inner))
        path = sql.SQL("SET search_path TO {}, {}").format(inner, sql.Identifier(raw_schema))
        conn.execute(path)
        assert migrate(conn) == NAMES
        assert "background_jobs" in tables(conn)
        conn.rollback()


def test_a_schema_is_renamed_as_documented(raw_database_url: str) -> None:
    """docs/security.md: the functions that name their schema come along."""
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
    found = re.search(r"```sql\n(BEGIN;\nALTER SCHEMA.*?)```", text, re.DOTALL)
    assert found is not None
    script = re.sub(r"\b(jobs|work)\b", r"documented_\1", found[1])
    script = re.sub(r"\b(BEGIN|COMMIT);", "", script)
    with psycopg.connect(raw_database_url) as conn:
        conn.execute("CREATE SCHEMA documented_jobs")
        conn.execute("SET search_path TO documented_jobs")
        migrate(conn)
        conn.execute(script.encode())
        conn.execute("SET search_path TO documented_work")
        for deduplicated in (False, True):
            enqueue = "SELECT workers_enqueue('mail', '{}', deduplicated => %s) > 0"
            assert conn.execute(enqueue, [deduplicated]).fetchone() == (True,)
        conn.rollback()


def test_missing_schema_is_named(raw_database_url: str) -> None:
    with (
        psycopg.connect(raw_database_url, options="-csearch_path=nowhere") as conn,
        pytest.raises(MigrationError, match="search_path"),
    ):
        migrate(conn)


@pytest.mark.parametrize("prepare", [lambda conn: None, lambda conn: conn.execute("SELECT 1")])
def test_check_names_what_is_missing(
    raw_database_url: str, prepare: Callable[[psycopg.Connection], object]
) -> None:
    with psycopg.connect(raw_database_url) as conn:
        prepare(conn)
        with pytest.raises(MigrationError, match=rf"lacks {NAMES[0]}.*run `workers migrate`"):
            check_migrations(conn)


def test_newer_database_is_left_alone_but_does_not_pass_the_check(database_url: str) -> None:
    check_migrations(database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute("INSERT INTO workers_migrations (version, name) VALUES (9999, 'later')")
    assert migrate(database_url) == []
    with pytest.raises(MigrationError, match="upgrade workers-pg"):
        check_migrations(database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute("DELETE FROM workers_migrations WHERE version = 9999")


def test_sql_for_other_tools_runs_as_one_script(raw_database_url: str) -> None:
    with psycopg.connect(raw_database_url) as conn:
        conn.execute(migrations_sql().encode())
        assert "background_jobs" in tables(conn)
    assert migrate(raw_database_url) == []
    check_migrations(raw_database_url)


def test_failing_migration_leaves_nothing(
    raw_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = migrations.Migration(9998, "9998_broken", b"CREATE TABLE half (); SELECT 1/0;")
    known = [*migrations._load(), broken]
    monkeypatch.setattr(migrations, "_load", lambda: known)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(raw_database_url)
    with psycopg.connect(raw_database_url) as conn:
        assert tables(conn) == set()


def test_other_objects_are_refused() -> None:
    with pytest.raises(UnsupportedConnectionError, match="not int"):
        migrate(1)  # type: ignore[call-overload]  # the mistake under test
    with pytest.raises(UnsupportedConnectionError, match=r"ConnectionPool; give one of its conn"):
        migrate(ConnectionPool(open=False))  # type: ignore[call-overload]  # likewise


@pytest.mark.parametrize("call", [migrate, check_migrations, apply_roles])
async def test_a_forgotten_await_has_the_name_of_what_was_called(
    aconn: psycopg.AsyncConnection, call: Callable[[psycopg.AsyncConnection], object]
) -> None:
    with pytest.warns(RuntimeWarning, match=f"coroutine '{call.__name__}' was never awaited"):
        call(aconn)
