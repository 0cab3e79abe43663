"""Engines behind one port: see `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .base import Storage

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    StorageTarget = AsyncConnectionPool[Any] | str | Storage
else:
    StorageTarget = Any

__all__ = ["Storage", "StorageTarget", "open_storage"]


def open_storage(target: StorageTarget, *, listen: bool = True) -> Storage:
    """The engine that `target` means: a Storage itself, a psycopg AsyncConnectionPool, or a PostgreSQL DSN.

    Raises ConfigurationError for anything else.
    """
    from psycopg_pool import AsyncConnectionPool

    if isinstance(target, AsyncConnectionPool | str):
        from .postgres.storage import PostgresStorage

        return PostgresStorage(target, listen=listen)
    if hasattr(target, "claim") and hasattr(target, "control"):
        return target
    raise ConfigurationError(
        f"a Runner works on a psycopg_pool.AsyncConnectionPool, a DSN or a Storage, not on {type(target).__name__}"
    )
