"""New connections like a pool's: for the runner's own links, which must never wait for the pool nor keep others waiting."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import psycopg
from psycopg import conninfo

from .lender import AnyPool

__all__ = ["Connector"]

#: An asynchronous pool's cursors are no use on a synchronous connection, and our statements do not use them.
_NOT_OURS = ("cursor_factory",)
#: Where neither the DSN nor the pool's arguments say anything else.
_DEFAULTS = {"connect_timeout": 5, "application_name": "workers"}

#: What a role allows web requests is no measure for a link that listens all day, or for a job at work in its transaction,
#: which has a `timeout` of its own. What is in pg_settings depends on the version of the server.
_PATIENCE = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""


class Connector:
    """Connects with the conninfo and keyword arguments of `pool`; both may be callables, as psycopg_pool allows."""

    def __init__(self, pool: AnyPool) -> None:
        self._pool = pool

    def connect(self) -> psycopg.Connection[Any]:
        """A synchronous autocommit connection. Not for a thread with a running event loop, if the pool's are callables."""
        pool = self._pool
        if callable(pool.conninfo) or callable(pool.kwargs):
            dsn, kwargs = asyncio.run(self._resolve())
        else:
            dsn, kwargs = _prepared(pool.conninfo, pool.kwargs)
        conn = psycopg.Connection.connect(dsn, **kwargs)
        try:
            conn.execute(_PATIENCE)
        except BaseException:
            conn.close()
            raise
        return conn

    async def connect_async(self) -> psycopg.AsyncConnection[Any]:
        """An asynchronous autocommit connection."""
        dsn, kwargs = await self._resolve()
        conn = await psycopg.AsyncConnection.connect(dsn, **kwargs)
        try:
            await conn.execute(_PATIENCE)
        except BaseException:
            await conn.close()
            raise
        return conn

    async def _resolve(self) -> tuple[str, dict[str, Any]]:
        values = []
        for value in (self._pool.conninfo, self._pool.kwargs):
            result = value() if callable(value) else value
            values.append(await result if inspect.isawaitable(result) else result)
        return _prepared(*values)


def _prepared(dsn: Any, given: Any) -> tuple[str, dict[str, Any]]:
    kwargs = {name: value for name, value in (given or {}).items() if name not in _NOT_OURS}
    named = conninfo.conninfo_to_dict(dsn or "")
    for name, value in _DEFAULTS.items():
        if not named.get(name):
            kwargs.setdefault(name, value)
    return dsn or "", kwargs | {"autocommit": True}
