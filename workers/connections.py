"""The table that lets `enqueue` run on any connection: one row per kind, found by the names in its type's MRO.

Names, because nothing here may import a library that the caller has not: whoever holds a SQLAlchemy session has imported it.
A row runs one statement in the transaction that the caller has open, or, in autocommit, as an atomic statement of its own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from psycopg import AsyncCursor, Cursor
from psycopg.raw_cursor import RawCursorMixin
from psycopg.rows import tuple_row

from .errors import UnsupportedConnectionError
from .job import NewJob
from .storage.base import Storage
from .storage.postgres.literals import text_array
from .storage.postgres.statements import statement

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

__all__ = [
    "ENQUEUE",
    "ENQUEUE_BATCH",
    "ENQUEUE_DEDUPLICATED",
    "AsyncConnectionLike",
    "SyncConnectionLike",
    "all_ids",
    "first_id",
    "nothing",
    "run",
]

T = TypeVar("T")
Parameters = dict[str, Any]
Shape = Callable[[Sequence[Sequence[Any]]], T]


# Types ------------------------------------------------------------------------------------------


class SQLAlchemyLike(Protocol):
    """SQLAlchemy's Session, scoped_session and Connection."""

    def begin_nested(self) -> AbstractContextManager[Any]: ...


class AsyncSQLAlchemyLike(Protocol):
    """SQLAlchemy's AsyncSession, async_scoped_session and AsyncConnection."""

    def begin_nested(self) -> AbstractAsyncContextManager[Any]: ...


class DjangoLike(Protocol):
    """Django's `connection` and `connections["name"]`."""

    vendor: Any
    in_atomic_block: Any

    def cursor(self) -> Any: ...


if TYPE_CHECKING:
    SyncConnectionLike = (
        Connection[Any] | Cursor[Any] | ConnectionPool[Any] | SQLAlchemyLike | DjangoLike
    )
    AsyncConnectionLike = (
        AsyncConnection[Any]
        | AsyncCursor[Any]
        | AsyncConnectionPool[Any]
        | AsyncSQLAlchemyLike
        | Storage
    )
else:
    SyncConnectionLike = AsyncConnectionLike = Any


# Statements -------------------------------------------------------------------------------------


class Query:
    """One of the enqueue statements, in psycopg's words and in SQLAlchemy's."""

    def __init__(self, name: str) -> None:
        self.text = statement(name)

    @cached_property
    def clause(self) -> Any:
        """The statement for SQLAlchemy.

        `::` after a parameter would be read as part of it. JSON goes through text, as asyncpg asks for the type that the
        statement gives a parameter first, and some drivers encode jsonb themselves.
        """
        from sqlalchemy import text

        json = re.sub(r"%\((\w+)\)s::jsonb", r"CAST(CAST(:\1 AS text) AS jsonb)", self.text)
        return text(re.sub(r"%\((\w+)\)s::(\w+(?:\[\])?)", r"CAST(:\1 AS \2)", json))


ENQUEUE = Query("enqueue")
ENQUEUE_BATCH = Query("enqueue_batch")
ENQUEUE_DEDUPLICATED = Query("enqueue_deduplicated")


def first_id(rows: Sequence[Sequence[Any]]) -> int | None:
    """The id of a single job."""
    found: int | None = rows[0][0]
    return found


def all_ids(rows: Sequence[Sequence[Any]]) -> list[int | None]:
    """The ids of a batch, in order."""
    return [row[0] for row in rows]


# Kinds ------------------------------------------------------------------------------------------


def _psycopg(conn: Connection[Any], query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    # the user's own kind of cursor where it can be: it may be there for a proxy, or for tracing
    raw = _is_raw(conn.cursor_factory)
    cursor = Cursor(conn, row_factory=tuple_row) if raw else conn.cursor(row_factory=tuple_row)
    return shape(cursor.execute(query.text, _flat(parameters)).fetchall())


async def _psycopg_async(
    conn: AsyncConnection[Any], query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    raw = _is_raw(conn.cursor_factory)
    cursor = AsyncCursor(conn, row_factory=tuple_row) if raw else conn.cursor(row_factory=tuple_row)
    await cursor.execute(query.text, _flat(parameters))
    return shape(await cursor.fetchall())


def _flat(parameters: Parameters) -> Parameters:
    """The same with a list of payloads written as an array's text, which psycopg would do element by element."""
    if type(parameters["data"]) is list:
        parameters["data"] = text_array(parameters["data"])
    return parameters


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
    return shape(session.execute(query.clause, parameters).all())


async def _sqlalchemy_async(
    session: Any, query: Query, parameters: Parameters, shape: Shape[T]
) -> T:
    return shape((await session.execute(query.clause, parameters)).all())


def _django(conn: Any, query: Query, parameters: Parameters, shape: Shape[T]) -> T:
    if conn.vendor != "postgresql":
        raise UnsupportedConnectionError(
            f"this Django connection is to {conn.vendor}: use the one of your PostgreSQL database, "
            "for example connections['jobs']"
        )
    with conn.cursor() as cursor:
        cursor.execute(query.text, _flat(parameters))
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


_KINDS = {
    "psycopg.Connection": Kind(_psycopg),
    "psycopg.AsyncConnection": Kind(_psycopg_async, is_async=True),
    "psycopg.Cursor": Kind(_cursor),
    "psycopg.AsyncCursor": Kind(_cursor_async, is_async=True),
    "psycopg_pool.pool.ConnectionPool": Kind(_pool),
    "psycopg_pool.pool_async.AsyncConnectionPool": Kind(_pool_async, is_async=True),
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
def _kind_of(kind: type) -> Kind:
    for base in kind.__mro__:
        if found := _KINDS.get(f"{base.__module__}.{base.__qualname__}"):
            return found
    what = f"{kind.__module__}.{kind.__qualname__}"
    if kind is str:
        what = "a string; connect first, with psycopg.connect(...) or a pool"
    raise UnsupportedConnectionError(
        f"can't enqueue on {what}. What works: a psycopg connection, cursor or pool, a SQLAlchemy 2 session or "
        "connection, Django's connection. Any other driver can run SELECT workers_enqueue(...)"
    )


def run(conn: Any, query: Query, parameters: Parameters, shape: Shape[Any]) -> Any:
    """Run `query` on `conn`; an awaitable where that is asynchronous. Raises UnsupportedConnectionError."""
    return _kind_of(type(conn)).run(conn, query, parameters, shape)  # type: ignore[arg-type]  # a class is hashable


def nothing(conn: Any) -> list[int | None] | Awaitable[list[int | None]]:
    """The result of an empty batch, in the way of `conn`."""
    kind = _kind_of(type(conn))  # type: ignore[arg-type]  # a class is hashable
    return _nothing() if kind.is_async else []


async def _nothing() -> list[int | None]:
    return []
