"""The table that lets `enqueue` run on any connection: one row per kind, found by the names in its type's MRO.

Names, because nothing here may import a library that the caller has not: whoever holds a SQLAlchemy session has imported it.
A row runs one statement in the transaction that the caller has open, or, in autocommit, as an atomic statement of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from psycopg import AsyncCursor, Cursor, ProgrammingError
from psycopg.pq import PipelineStatus
from psycopg.raw_cursor import RawCursorMixin
from psycopg.rows import tuple_row

from . import telemetry
from ._connection_advice import add_advice, advice_on
from ._connection_types import AsyncConnectionLike, SyncConnectionLike
from ._enqueue_errors import in_short
from ._enqueue_statements import (
    ENQUEUE,
    ENQUEUE_AT,
    ENQUEUE_BATCH,
    ENQUEUE_COPY,
    ENQUEUE_DEDUPLICATED,
    Query,
)
from .copying import copy, copy_async
from .errors import UnsupportedConnectionError
from .job import NewJob
from .storage.base import Storage
from .storage.postgres.literals import text_array

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    from .background_job import BackgroundJob

    Caller = type[BackgroundJob[Any]]

__all__ = [
    "ENQUEUE",
    "ENQUEUE_AT",
    "ENQUEUE_BATCH",
    "ENQUEUE_COPY",
    "ENQUEUE_DEDUPLICATED",
    "AsyncConnectionLike",
    "SyncConnectionLike",
    "all_ids",
    "first_id",
    "no_ids",
    "nothing",
    "run",
]

#: SQLAlchemy's own dialects for other databases; there are more for PostgreSQL than its own.
_NOT_POSTGRES = frozenset({"sqlite", "mysql", "mariadb", "mssql", "oracle"})

T = TypeVar("T")
Parameters = dict[str, Any]
Shape = Callable[[Sequence[Sequence[Any]]], T]


# What the statements' rows mean ---------------------------------------------------------------------


def first_id(rows: Sequence[Sequence[Any]]) -> int | None:
    """The id of a single job."""
    found: int | None = rows[0][0]
    return found


def all_ids(rows: Sequence[Sequence[Any]]) -> list[int | None]:
    """The ids of a batch, in order."""
    return [row[0] for row in rows]


def no_ids(rows: Sequence[Sequence[Any]]) -> None:
    """Nobody wants to know."""


# Kinds ------------------------------------------------------------------------------------------


def _psycopg(conn: Connection[Any], query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    try:
        if query is ENQUEUE_COPY and _can_copy(conn):
            copy(conn, parameters)
            return shape(())
        # the user's own kind of cursor where it can be: it may be there for a proxy, or for tracing
        own = conn.cursor_factory
        raw = own is not Cursor and _is_raw(own)  # type: ignore[arg-type]  # a class is hashable
        cursor = Cursor(conn, row_factory=tuple_row) if raw else conn.cursor(row_factory=tuple_row)
        return shape(cursor.execute(query.text, _flat(parameters)).fetchall())
    except (ProgrammingError, UnicodeEncodeError) as error:
        add_advice(error, conn)
        raise


async def _psycopg_async(
    conn: AsyncConnection[Any], query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    try:
        if query is ENQUEUE_COPY and _can_copy(conn):
            await copy_async(conn, parameters)
            return shape(())
        raw = _is_raw(conn.cursor_factory)  # type: ignore[arg-type]  # a class is hashable
        cursor = (
            AsyncCursor(conn, row_factory=tuple_row) if raw else conn.cursor(row_factory=tuple_row)
        )
        await cursor.execute(query.text, _flat(parameters))
        return shape(await cursor.fetchall())
    except (ProgrammingError, UnicodeEncodeError) as error:
        add_advice(error, conn)
        raise


def _flat(parameters: Parameters) -> Parameters:
    """The same with payloads, where there are many, as the text of an array: psycopg would write it element by element."""
    if type(parameters["data"]) is not str:
        parameters["data"] = text_array(parameters["data"])
    return parameters


def _can_copy(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Not in pipeline mode."""
    return conn.pgconn.pipeline_status == PipelineStatus.OFF


@lru_cache(maxsize=64)
def _is_raw(cursor_factory: type) -> bool:
    """Whether its cursors know $1 only."""
    return RawCursorMixin in cursor_factory.__mro__


def _cursor(cursor: Cursor[Any], query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    return _psycopg(cursor.connection, query, parameters, shape)


async def _cursor_async(
    cursor: AsyncCursor[Any], query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    return await _psycopg_async(cursor.connection, query, parameters, shape)


def _pool(pool: ConnectionPool[Any], query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    with pool.connection() as conn:
        return _psycopg(conn, query, parameters, shape)


async def _pool_async(
    pool: AsyncConnectionPool[Any], query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    async with pool.connection() as conn:
        return await _psycopg_async(conn, query, parameters, shape)


def _sqlalchemy(session: Any, query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    try:
        return shape(session.execute(query.clause, parameters).all())
    except Exception as error:
        _explain_sqlalchemy(session, error)
        raise


async def _sqlalchemy_async(
    session: Any, query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    try:
        return shape((await session.execute(query.clause, parameters)).all())
    except Exception as error:
        _explain_sqlalchemy(session, error)
        raise


def _explain_sqlalchemy(session: Any, error: Exception) -> None:
    """Add what is known of a failure. Afterwards, as routing sessions may not know their database any earlier."""
    add_advice(getattr(error, "orig", None) or error, note_on=error)
    try:
        bind = session if hasattr(session, "dialect") else session.get_bind()
    except Exception:  # what is wrong may be just that
        return
    if (name := bind.dialect.name) in _NOT_POSTGRES:
        raise UnsupportedConnectionError(
            f"this SQLAlchemy connection is to {name}: use one of your PostgreSQL database"
        ) from error


def _django(conn: Any, query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    if conn.vendor != "postgresql":
        raise UnsupportedConnectionError(
            f"this Django connection is to {conn.vendor}: use the one of your PostgreSQL database, "
            "for example connections['jobs']"
        )
    with conn.cursor() as cursor:
        try:
            cursor.execute(query.text, _flat(parameters))
        except Exception as error:
            add_advice(error.__cause__ or error, note_on=error)
            raise
        return shape(cursor.fetchall())


async def _storage(store: Storage, query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    common = dict(parameters, deduplicated=query is ENQUEUE_DEDUPLICATED)
    data = common.pop("data")
    texts = [data] if isinstance(data, str) else data
    ids = await store.enqueue([NewJob(data=text, **common) for text in texts])
    return shape([(job_id,) for job_id in ids])


class Kind(NamedTuple):
    """How to run a statement on one kind of connection."""

    run: Callable[[Any, Query, Parameters, Shape[Any]], Any]
    is_async: bool = False
    #: Whether `run` takes payloads one by one.
    streams: bool = False


_KINDS = {
    "psycopg.Connection": Kind(_psycopg, streams=True),
    "psycopg.AsyncConnection": Kind(_psycopg_async, is_async=True, streams=True),
    "psycopg.Cursor": Kind(_cursor, streams=True),
    "psycopg.AsyncCursor": Kind(_cursor_async, is_async=True, streams=True),
    "psycopg_pool.pool.ConnectionPool": Kind(_pool, streams=True),
    "psycopg_pool.pool_async.AsyncConnectionPool": Kind(_pool_async, is_async=True, streams=True),
    "sqlalchemy.engine.base.Connection": Kind(_sqlalchemy),
    "sqlalchemy.orm.session.Session": Kind(_sqlalchemy),
    "sqlalchemy.orm.scoping.scoped_session": Kind(_sqlalchemy),
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": Kind(_sqlalchemy_async, is_async=True),
    "sqlalchemy.ext.asyncio.session.AsyncSession": Kind(_sqlalchemy_async, is_async=True),
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": Kind(_sqlalchemy_async, is_async=True),
    "django.utils.connection.ConnectionProxy": Kind(_django),
    "django.db.backends.base.base.BaseDatabaseWrapper": Kind(_django),
    "workers.storage.base.Storage": Kind(_storage, is_async=True),
    "workers.storage.memory.storage.MemoryStorage": Kind(_storage, is_async=True),
    "workers.storage.postgres.storage.PostgresStorage": Kind(_storage, is_async=True),
}


@lru_cache(maxsize=256)
def _kind_of(kind: type) -> Kind | None:
    for base in kind.__mro__:
        if found := _KINDS.get(f"{base.__module__}.{base.__qualname__}"):
            return found
    return None


def _kind(conn: Any) -> Kind:
    # what traces connections may stand before them: its type is its own, its class is theirs
    kind = _kind_of(type(conn)) or _kind_of(conn.__class__)  # type: ignore[arg-type]  # hashable
    if kind is None:
        raise UnsupportedConnectionError(advice_on(type(conn)))
    return kind


def run(caller: Caller, conn: Any, query: Query, parameters: Parameters, shape: Shape[Any]) -> Any:
    """Run `query` on `conn`; an awaitable where that is asynchronous. Raises UnsupportedConnectionError."""
    kind = _kind(conn)
    if query is ENQUEUE_COPY and not kind.streams:
        parameters["data"] = list(parameters["data"])
    plain = (known := caller._workers_type) is not None and not known.secrets  # as nearly all are
    write = kind.run if plain else in_short(caller, kind.run, kind.is_async)
    if kind.is_async:
        return _named(_watched(write, conn, query, parameters, shape), caller, shape)
    return write(conn, query, parameters, shape)


async def _watched(
    write: Any, conn: Any, query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    try:
        result: T = await write(conn, query, parameters, shape)
    except BaseException:
        telemetry.enqueue_failed()
        raise
    return result


def nothing(caller: type, conn: Any, shape: Shape[Any]) -> Any:
    """The result of an empty batch, in the way of `conn`."""
    kind = _kind(conn)
    return _named(_nothing(shape), caller, shape) if kind.is_async else shape(())


def _named(coroutine: Any, caller: type, shape: Shape[Any]) -> Any:
    """The same, under the name that Python warns of when it was never awaited: one that its user has written."""
    method = "enqueue" if shape is first_id else "enqueue_batch"
    coroutine.__qualname__ = f"{caller.__qualname__}.{method}"
    return coroutine


async def _nothing(shape: Shape[T]) -> T:
    return shape(())
