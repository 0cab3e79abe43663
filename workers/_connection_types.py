"""What `enqueue` takes, for type checkers: by the real types where they are psycopg's, by their shape where they are not."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from .storage.base import Storage

if TYPE_CHECKING:
    from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

__all__ = ["AsyncConnectionLike", "SyncConnectionLike"]


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
