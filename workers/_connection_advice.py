"""What to do about an object that `enqueue` can't run SQL on, and about a database without the tables."""

from __future__ import annotations

__all__ = ["add_advice", "advice_on"]

_WORKS = (
    "What works: a psycopg connection, cursor or pool, a SQLAlchemy 2 session or connection, Django's connection. "
    "Any other driver can run SELECT workers_enqueue(...)"
)
_ENGINE = "use a connection of it: `with engine.begin() as conn: job.enqueue(conn)`"
_ASYNC_ENGINE = (
    "use a connection of it: `async with engine.begin() as conn: await job.enqueue(conn)`"
)
_MAKER = "call it: `with Session.begin() as session: job.enqueue(session)`"
_ASYNC_MAKER = "call it: `async with Session.begin() as session: await job.enqueue(session)`"
_OTHER_DRIVER = (
    "this driver is not psycopg 3: run SELECT workers_enqueue('job_type', '{...}') on it, which joins its transaction, "
    "or enqueue on the SQLAlchemy session or the Django connection that it belongs to"
)
_NOT_ENTERED = "enter it: `with ... as conn: job.enqueue(conn)`"
_NOT_AWAITED = "await it first"

#: By the names in the MRO of what was given.
_ADVICE = {
    "builtins.NoneType": "connect first, with psycopg.connect(...) or a pool",
    "builtins.str": "a string is no connection: connect first, with psycopg.connect(...) or a pool",
    "builtins.coroutine": _NOT_AWAITED,
    "contextlib._GeneratorContextManager": _NOT_ENTERED,
    "contextlib._AsyncGeneratorContextManager": _NOT_ENTERED.replace("with", "async with"),
    "sqlalchemy.engine.base.Engine": _ENGINE,
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": _ASYNC_ENGINE,
    "sqlalchemy.orm.session.sessionmaker": _MAKER,
    "sqlalchemy.ext.asyncio.session.async_sessionmaker": _ASYNC_MAKER,
    "sqlalchemy.pool.base._ConnectionFairy": _OTHER_DRIVER,
    "flask_sqlalchemy.extension.SQLAlchemy": "use its session: job.enqueue(db.session)",
    "django.utils.connection.BaseConnectionHandler": "use one of them: connections['default']",
    "django.db.backends.utils.CursorWrapper": "use the connection itself: django.db.connection",
    "psycopg2.extensions.connection": _OTHER_DRIVER,
    "psycopg2.extensions.cursor": _OTHER_DRIVER,
    "asyncpg.connection.Connection": _OTHER_DRIVER,
    "asyncpg.pool.Pool": _OTHER_DRIVER,
    "asyncpg.pool.PoolConnectionProxy": _OTHER_DRIVER,
    "sqlite3.Connection": "jobs are kept in PostgreSQL: enqueue on a connection to that",
}

#: undefined_table, undefined_function, undefined_column
_MISSING = ("42P01", "42883", "42703")
_MIGRATE = (
    "The tables of `workers` are missing, outside of the search_path, or older than the library: run "
    "`workers migrate`, or workers.migrate(dsn)"
)
#: invalid_sql_statement_name, duplicate_prepared_statement
_PREPARED = ("26000", "42P05")
_PREPARE_NOTHING = (
    "Through a pooler, such as PgBouncer, a prepared statement is there one time and not the next: connect with "
    "prepare_threshold=None"
)


def advice_on(kind: type) -> str:
    """Say that nothing can be enqueued on objects of `kind`, and what to do."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    advice = next((_ADVICE[name] for name in names if name in _ADVICE), _WORKS)
    return (
        f"can't enqueue on {names[0].removeprefix('builtins.')}. {advice[:1].upper()}{advice[1:]}"
    )


def add_advice(error: BaseException | None, *, note_on: BaseException | None = None) -> None:
    """If it is known why the database told `error`, add to it, or to `note_on`, what to do."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)  # psycopg2's word
    if state in _MISSING and ("background_jobs" in str(error) or "workers_" in str(error)):
        (note_on or error).add_note(_MIGRATE)  # type: ignore[union-attr]  # None has no sqlstate
    elif state in _PREPARED:
        (note_on or error).add_note(_PREPARE_NOTHING)  # type: ignore[union-attr]
