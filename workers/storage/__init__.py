"""Engines behind one port: see `base`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .base import Storage

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    StorageTarget = AsyncConnectionPool[Any] | str | Storage
else:
    StorageTarget = Any

__all__ = ["Storage", "StorageTarget", "open_storage", "storage_of"]


def storage_of(target: StorageTarget, *, listen: bool = True) -> Storage:
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


@asynccontextmanager
async def open_storage(target: StorageTarget) -> AsyncIterator[Storage]:
    """The engine that `target` means, opened: for reading, and for requeueing dead jobs.

    Raises ConfigurationError, StorageUnavailableError, and MigrationError when the tables are missing.
    """
    storage = storage_of(target, listen=False)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()
