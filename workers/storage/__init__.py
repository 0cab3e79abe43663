"""Engines behind one port: see `base`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..dsn import read_dsn
from ..errors import ConfigurationError
from .base import Storage

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    StorageTarget = AsyncConnectionPool[Any] | str | Storage
else:
    StorageTarget = Any

__all__ = ["Storage", "StorageTarget", "check_target", "open_storage", "storage_of"]

_POOL = "psycopg_pool.AsyncConnectionPool"
#: What else people try, by the names in its type's MRO.
_ADVICE = {
    "psycopg_pool.pool.ConnectionPool": f"this pool is synchronous: make a {_POOL}(dsn, open=False), or give the DSN",
    "psycopg.Connection": f"one connection is too few: give the DSN, or a {_POOL}",
    "psycopg.AsyncConnection": f"one connection is too few: give the DSN, or a {_POOL}",
    "sqlalchemy.engine.base.Engine": "give engine.url.render_as_string(hide_password=False)",
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": "give engine.url.render_as_string(hide_password=False)",
    "sqlalchemy.engine.url.URL": "give url.render_as_string(hide_password=False)",
}


def check_target(target: StorageTarget) -> StorageTarget:
    """Return `target`, a DSN in libpq's own form, if `storage_of` knows what to do with it. Does no I/O.

    Raises ConfigurationError if not; it quotes no password.
    """
    from psycopg_pool import AsyncConnectionPool

    given: object = target
    if given is None or isinstance(given, str):
        return read_dsn(given)
    if isinstance(target, AsyncConnectionPool):
        if isinstance(target.conninfo, str) and target.conninfo:
            _check_conninfo(target.conninfo)
        return target
    if hasattr(target, "claim") and hasattr(target, "control"):
        return target
    names = [f"{base.__module__}.{base.__qualname__}" for base in type(target).__mro__]
    advice = next(
        (_ADVICE[name] for name in names if name in _ADVICE),
        f"give a DSN, a {_POOL} or a Storage",
    )
    what = names[0].removeprefix("builtins.")
    raise ConfigurationError(f"jobs can't be run on {what}: {advice}")


def _check_conninfo(conninfo: str) -> None:
    if read_dsn(conninfo) != conninfo.strip():
        raise ConfigurationError(
            "the pool's connection string names a driver, which psycopg does not know: write postgresql://..."
        )


def storage_of(target: StorageTarget, *, listen: bool = True) -> Storage:
    """The engine that `target` means: a Storage itself, a psycopg AsyncConnectionPool, or a PostgreSQL DSN.

    Raises ConfigurationError for anything else.
    """
    from psycopg_pool import AsyncConnectionPool

    target = check_target(target)
    if isinstance(target, AsyncConnectionPool | str):
        from .postgres.storage import PostgresStorage

        return PostgresStorage(target, listen=listen)
    return target


@asynccontextmanager
async def open_storage(target: StorageTarget) -> AsyncIterator[Storage]:
    """The engine that `target` means, opened: for reading, and for requeueing dead jobs.

    Raises ConfigurationError, StorageUnavailableError, and MigrationError when the tables are missing or older.
    """
    storage = storage_of(target, listen=False)
    try:
        await storage.open()
        yield storage
    finally:
        await storage.close()
