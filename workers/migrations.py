"""Apply the numbered SQL files of `migrations/` to a database, each once.

Everything happens in the connection's current schema and in one transaction: a database is either at
the newest version or where it was before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, LiteralString, NamedTuple, TypeAlias, TypeVar, overload

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .dsn import read_dsn
from .errors import MigrationError, UnsupportedConnectionError

__all__ = [
    "Steps",
    "Target",
    "check_migrations",
    "check_not_older",
    "migrate",
    "migration_file",
    "migrations_sql",
    "newer_tables",
    "run_steps",
]

T = TypeVar("T")
Target: TypeAlias = str | psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
# What to execute next; the rows come back. One such generator serves sync and async connections.
Steps = Generator[tuple[LiteralString | bytes, tuple[object, ...] | None], list[Any], T]

# REPEATABLE READ would take its snapshot before the lock is ours, and not see what the last holder did.
READ_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
SCHEMA_OID = "SELECT oid::int FROM pg_namespace WHERE nspname = current_schema()"
# Types and schemas of functions are told, here and below, where one in the current schema could fit better, which somebody
# put there to have it run by whoever migrates.
LOCK = "SELECT pg_advisory_xact_lock(hashtext('workers.migrate'), %s::int)"
# Asked for instead of CREATE TABLE IF NOT EXISTS, which tells every caller a NOTICE.
TABLE_EXISTS = """\
SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'workers_migrations'"""
CREATE_TABLE = """\
CREATE TABLE workers_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
VERSIONS = "SELECT version FROM workers_migrations"
# New objects are to belong to whom the others do: `workers migrate --roles` gives them to a group whose members migrate.
OWNER = """\
SELECT tableowner, current_setting('role'), current_setting('search_path')
FROM pg_tables
WHERE schemaname = current_schema() AND tablename = 'workers_migrations'
    AND tableowner <> current_user AND pg_has_role(tableowner, 'MEMBER')"""
# Migrators of `workers migrate --roles` that may create objects in the schema, where a superuser asks. To SET ROLE would not
# help him: a trigger or a function can RESET it.
STRANGERS = """\
SELECT migrator.rolname
FROM pg_namespace, pg_catalog.aclexplode(nspacl) AS given JOIN pg_roles AS migrator ON migrator.oid = given.grantee
WHERE nspname = current_schema() AND given.privilege_type = 'CREATE' AND NOT migrator.rolsuper
    AND pg_catalog.right(migrator.rolname::text, 9) = '_migrator'
    AND EXISTS (
        SELECT FROM pg_roles AS worker
        WHERE worker.rolname::text = pg_catalog.regexp_replace(migrator.rolname::text, '_migrator$'::text, '_worker'::text)
    )
    AND EXISTS (SELECT FROM pg_roles AS own WHERE own.rolsuper AND own.rolname IN (session_user, current_user))
ORDER BY migrator.rolname"""
# From then on the name stands for the same table.
HOLD_TABLE = "LOCK TABLE workers_migrations IN ACCESS SHARE MODE"
# "$user" on it would be another schema for another role.
PIN_SCHEMA = "SELECT set_config('search_path', pg_catalog.quote_ident(current_schema()), true)"
SET_ROLE = "SELECT set_config('role', %s, true)"
SET_SEARCH_PATH = "SELECT set_config('search_path', %s, true)"
# Whoever waits for a table keeps all others from it who come after: jobs that are claimed, and enqueued.
BE_BRIEF = """\
SELECT set_config('lock_timeout', '5s', true) WHERE current_setting('lock_timeout') = '0'"""
# The file that takes all tables, before any is changed.
LOCK_TABLES = "lock_tables.sql"
RECORD = "INSERT INTO workers_migrations (version, name) VALUES (%s, %s)"


class Migration(NamedTuple):
    version: int
    name: str
    sql: bytes


@overload
def migrate(target: str | psycopg.Connection[Any]) -> list[str]: ...
@overload
def migrate(target: psycopg.AsyncConnection[Any]) -> Coroutine[Any, Any, list[str]]: ...
def migrate(target: Target) -> list[str] | Coroutine[Any, Any, list[str]]:
    """Bring the tables in the current schema of `target` to the newest version.

    `target` is a DSN, a psycopg connection, or an AsyncConnection, for which the result is awaitable.
    An open transaction is joined, and yours to commit; otherwise the migrations commit by themselves.
    Safe to call at every start and from many processes at once: one applies, the others wait for it
    and find nothing to do. Versions newer than this library's own are left alone.

    Returns the names of the migrations that were applied, oldest first; [] if there were none.
    Raises MigrationError when the connection has no current schema, when somebody's transaction uses the tables for
    longer than 5 s (or the connection's own lock_timeout), and when a superuser is asked to migrate where a role of
    `apply_roles` may create objects; ConfigurationError for a DSN that can't be read, UnsupportedConnectionError for
    another kind of connection, and psycopg.Error.
    """
    return run_steps(target, _migrate, "migrate")


@overload
def check_migrations(target: str | psycopg.Connection[Any]) -> None: ...
@overload
def check_migrations(target: psycopg.AsyncConnection[Any]) -> Coroutine[Any, Any, None]: ...
def check_migrations(target: Target) -> Coroutine[Any, Any, None] | None:
    """Raise MigrationError unless the current schema of `target` is at exactly this library's version."""
    return run_steps(target, _check, "check_migrations")


def migrations_sql() -> str:
    """Return the SQL of all migrations, oldest first, for a database that is managed by other tools.

    It records what it applies as `migrate` does, so that the two can be mixed. Apply it once, in one transaction.
    """
    steps = [f"{CREATE_TABLE};\n".replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1)]
    for m in _load():
        values = f"({m.version}, '{m.name}')"
        record = f"INSERT INTO workers_migrations (version, name) VALUES {values};\n"  # noqa: S608
        steps.append(f"-- {m.name}\n\n{m.sql.decode()}\n{record}")
    return "\n".join(steps)


def _migrate(own_transaction: bool) -> Steps[list[str]]:
    if own_transaction:
        yield READ_COMMITTED, None
    schema = yield SCHEMA_OID, None
    if not schema:
        raise MigrationError("no schema in this connection's search_path exists: create one first")
    strangers = yield STRANGERS, None
    exists = yield TABLE_EXISTS, None
    if exists and strangers:  # a view that they put in its place would run what they like
        yield HOLD_TABLE, None
        exists = yield TABLE_EXISTS, None
    # most calls find nothing to do, and wait for nobody
    if exists and not _pending((yield VERSIONS, None)):
        return []
    if strangers:
        raise MigrationError(_unsafe(strangers[0][0]))
    yield LOCK, schema[0]
    if not (yield TABLE_EXISTS, None):
        yield CREATE_TABLE, None
    pending = _pending((yield VERSIONS, None))
    if own_transaction:
        yield BE_BRIEF, None
    other = (yield OWNER, None) if pending else []
    for owner, _, _ in other:
        yield PIN_SCHEMA, None
        yield SET_ROLE, (owner,)
    if pending:
        yield migration_file(LOCK_TABLES), None
    for migration in pending:
        yield migration.sql, None
        yield RECORD, (migration.version, migration.name)
    for _, role, search_path in other:
        yield SET_ROLE, (role,)
        yield SET_SEARCH_PATH, (search_path,)
    return [m.name for m in pending]


def _unsafe(migrator: str) -> str:
    return (
        "a superuser does not migrate here, as members of "
        f'{migrator} could have prepared what it would run: connect as one of them (GRANT "{migrator}" TO ...)'
    )


def _pending(applied: Sequence[Any]) -> list[Migration]:
    versions = {version for (version,) in applied}
    return [m for m in _load() if m.version not in versions]


def _check(own_transaction: bool) -> Steps[None]:
    if newer := (yield from _compare(own_transaction)):
        raise MigrationError(newer)


def newer_tables(conn: psycopg.Connection[Any]) -> str:
    """What is to be said where the tables in the current schema are newer than this library, "" where they are its own.

    Raises MigrationError where they are older, or missing.
    """
    return _run_sync(conn, _compare)


def _compare(_own_transaction: bool) -> Steps[str]:
    exists = yield TABLE_EXISTS, None
    rows = (yield VERSIONS, None) if exists else []
    check_not_older(rows)
    applied = {version for (version,) in rows}
    known = {m.version for m in _load()}
    if applied <= known:
        return ""
    return (
        f"this database is at version {max(applied)}, this library knows {max(known)}: "
        "upgrade workers-pg"
    )


def check_not_older(applied: Sequence[Any]) -> None:
    """Raise MigrationError if a database with these rows of `VERSIONS` lacks a migration of this library."""
    if missing := [m.name for m in _pending(applied)]:
        raise MigrationError(f"this database lacks {', '.join(missing)}: run `workers migrate`")


def migration_file(name: str) -> bytes:
    """What the file `name` beside the migrations says."""
    return (_folder() / name).read_bytes()


def _load() -> list[Migration]:
    """Read the migrations, oldest first."""
    names = sorted(f.name for f in _folder().iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", f.name))
    return [Migration(int(n[:4]), n.removesuffix(".sql"), migration_file(n)) for n in names]


def _folder() -> Traversable:
    """In the wheel or, when installed editable, the repository."""
    found: Traversable = files("workers") / "migrations"
    return found if found.is_dir() else Path(__file__).parents[1] / "migrations"


def run_steps(
    target: object, plan: Callable[[bool], Steps[T]], name: str
) -> T | Coroutine[Any, Any, T]:
    """Execute a plan. `name`: of the function that was called, for Python's warning when it was not awaited."""
    match target:
        case str() | None:
            with psycopg.connect(read_dsn(target)) as conn:
                return _run_sync(conn, plan)
        case psycopg.Connection():
            return _run_sync(target, plan)
        case psycopg.AsyncConnection():
            coroutine = _run_async(target, plan)
            coroutine.__qualname__ = name  # type: ignore[attr-defined]  # it has one
            return coroutine
    kind = f"{type(target).__module__}.{type(target).__qualname__}".removeprefix("builtins.")
    advice = "; give one of its connections" if hasattr(target, "connection") else ""
    raise UnsupportedConnectionError(f"expected a DSN or a psycopg connection, not {kind}{advice}")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise MigrationError(
            "somebody's transaction, a transactional job's perhaps, uses the tables for longer than this waits "
            "(lock_timeout); nothing was changed: try again when it is over"
        ) from error


def _run_sync(conn: psycopg.Connection[Any], plan: Callable[[bool], Steps[T]]) -> T:
    steps = plan(conn.info.transaction_status == TransactionStatus.IDLE)
    # not the connection's own kind of cursor, which may know $1 only
    with _explained(), conn.transaction(), psycopg.Cursor(conn, row_factory=tuple_row) as cur:
        try:
            query, params = next(steps)
            while True:
                cur.execute(query, params, prepare=False)  # it may be several commands
                query, params = steps.send(cur.fetchall() if cur.description else [])
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # StopIteration carries no type


async def _run_async(conn: psycopg.AsyncConnection[Any], plan: Callable[[bool], Steps[T]]) -> T:
    steps = plan(conn.info.transaction_status == TransactionStatus.IDLE)
    with _explained():
        async with conn.transaction(), psycopg.AsyncCursor(conn, row_factory=tuple_row) as cur:
            try:
                query, params = next(steps)
                while True:
                    await cur.execute(query, params, prepare=False)  # it may be several commands
                    query, params = steps.send(await cur.fetchall() if cur.description else [])
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # StopIteration carries no type
