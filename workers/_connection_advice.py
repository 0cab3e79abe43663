"""What to do about an object that `enqueue` can't run SQL on, and about a database without the tables."""

from __future__ import annotations

import codecs
from typing import Any

from .errors import RIGHTS, InvalidJobError

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
    "`workers migrate`, or workers.migrate(dsn). A user without rights on their schema does not see them: GRANT it a role "
    "of `workers migrate --roles`"
)
#: insufficient_privilege
_DENIED = "42501"
_OURS = ("background_jobs", "worker_", "workers_")
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


def add_advice(
    error: BaseException | None, conn: Any = None, *, note_on: BaseException | None = None
) -> None:
    """If it is known why `error` was raised, by the database or by psycopg's `conn`, add to it, or to `note_on`, what to do.

    Raises InvalidJobError in its place where the connection has no way to write the job.
    """
    if isinstance(error, UnicodeEncodeError):
        _refuse_encoding(error, conn)
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)  # psycopg2's word
    advice = None
    if state in _MISSING and ("background_jobs" in str(error) or "workers_" in str(error)):
        advice = _MIGRATE
    elif state == _DENIED and any(name in str(error) for name in _OURS):
        advice = RIGHTS
    elif state in _PREPARED:
        advice = _PREPARE_NOTHING
    if advice:
        (note_on or error).add_note(advice)  # type: ignore[union-attr]  # None has no sqlstate


def _refuse_encoding(error: UnicodeEncodeError, conn: Any) -> None:
    if (
        codecs.lookup(error.encoding).name == "utf-8"
    ):  # which has everything: not the connection's fault
        return
    name = error.encoding if conn is None else conn.info.parameter_status("client_encoding")
    # its text, and what it holds, are the payload's
    raise InvalidJobError(
        f"the job has characters that this connection's client_encoding {name} lacks: connect with client_encoding=UTF8"
    ) from None
