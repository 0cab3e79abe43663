"""New connections like a pool's: for the runner's own links, which must never wait for the pool nor keep others waiting."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import conninfo, sql
from psycopg.pq import TransactionStatus

from .lender import AnyPool
from .links import AsyncLink, Link

__all__ = ["Connector", "with_defaults"]

#: An asynchronous pool's cursors are no use on a synchronous connection, and our statements do not use them.
_NOT_OURS = ("cursor_factory",)
#: Where neither the DSN nor the pool's arguments say anything else. (The driver's own patience is 130 s for each host.)
_CONNECT_TIMEOUT = {"connect_timeout": 5}
_NAME = {"application_name": "workers"}
#: The same, for what the system does about a peer that is gone. (No effect on a unix socket.)
_TCP = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
#: Payloads and errors may hold any character, whatever the role or the environment would have.
_ENCODING = {"client_encoding": "UTF8"}

#: What a role allows web requests is no measure for a link that listens all day, or for a job at work in its transaction,
#: which has a `timeout` of its own. And the server's end holds locks on rows: it must not take two hours to notice that
#: the client's is gone.
_SETTINGS = {
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

#: Some settings came with a later version of the server.
_SET = """
SELECT pg_catalog.set_config(item.name, item.value, false) FROM (VALUES {}) AS item (name, value)
WHERE pg_catalog.current_setting(item.name, true) IS NOT NULL
"""


class Connector:
    """Connects with the conninfo and keyword arguments of `pool`; both may be callables, as psycopg_pool allows.

    `search_path` is what the pool's connections have, as soon as that is known: its `configure` may have set it. `pooled`:
    whether they go through a pooler, where nothing can be set for a session, nor prepared.
    """

    def __init__(
        self,
        pool: AnyPool,
        search_path: Callable[[], str | None] = lambda: None,
        pooled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pool = pool
        self._search_path = search_path
        self._pooled = pooled

    def connect(self) -> Link:
        """A synchronous autocommit connection. Not for a thread with a running event loop, if the pool's are callables."""
        pool = self._pool
        if callable(pool.conninfo) or callable(pool.kwargs):
            dsn, kwargs = asyncio.run(self._resolve())
        else:
            dsn, kwargs = _prepared(pool.conninfo, pool.kwargs)
        with self._explained():
            link = Link.connect(dsn, **kwargs | {"autocommit": True})
        try:
            if self._pooled():
                link.prepare_threshold = None
            else:
                link.execute(self._settings())
        except BaseException:
            link.close()
            raise
        link.patience = None
        return link

    async def connect_async(self, *, bare: bool = False) -> AsyncLink:
        """An asynchronous autocommit connection, configured as the pool's are; `bare`: without any setting of ours."""
        dsn, kwargs = await self._resolve()
        with self._explained():
            link = await AsyncLink.connect(dsn, **kwargs)
        try:
            if self._pool._configure is not None:  # psycopg_pool has no public way
                link.configure = self._configure
                await link.configure(link)
            await link.set_autocommit(True)
            if bare or self._pooled():
                link.prepare_threshold = None
            else:
                await link.execute(self._settings())
        except BaseException:
            await link.close()
            raise
        link.patience = None
        return link

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A class that fetches a password when it connects, say, is no use to connections of another class."""
        try:
            yield
        except psycopg.Error as error:
            if not _connects_itself(self._pool.connection_class):
                raise
            raise type(error)(
                f"{error} (the pool's connection_class has a `connect` of its own, which the runner's own connections don't "
                "use: what it adds, a password say, can be had from a function that is the pool's `kwargs` or `conninfo`)"
            ) from error

    async def _resolve(self) -> tuple[str, dict[str, Any]]:
        values = []
        for value in (self._pool.conninfo, self._pool.kwargs):
            try:
                result = value() if callable(value) else value
                values.append(await result if inspect.isawaitable(result) else result)
            except (
                Exception
            ) as error:  # a password's vault that is down is as good as a server that is
                raise psycopg.OperationalError(
                    f"the pool's own arguments can't be had: {error!r}"
                ) from error
        return _prepared(*values)

    async def _configure(self, link: AsyncLink) -> None:
        try:
            await self._pool._configure(link)  # type: ignore[misc] # looked at before
        except Exception as error:
            raise psycopg.OperationalError(f"the pool's `configure` failed: {error!r}") from error
        if link.pgconn.transaction_status != TransactionStatus.IDLE:
            raise psycopg.OperationalError("the pool's `configure` left a transaction open")

    def _settings(self) -> sql.Composed:
        settings = dict(_SETTINGS)
        if search_path := self._search_path():
            settings["search_path"] = search_path
        pairs = (sql.SQL("({}, {})").format(name, value) for name, value in settings.items())
        return sql.SQL(_SET).format(sql.SQL(", ").join(pairs))


def _connects_itself(kind: type) -> bool:
    """Whether it, or a class that it comes from, has another `connect` than the driver's."""
    for base in kind.__mro__:
        if base is psycopg.AsyncConnection:
            return False
        if "connect" in vars(base):
            return True
    return False


def with_defaults(dsn: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` with what every connection of ours has, where `dsn` says nothing else."""
    named = conninfo.conninfo_to_dict(dsn)
    ours = _NAME | _CONNECT_TIMEOUT | _TCP
    defaults = {name: value for name, value in ours.items() if not named.get(name)}
    return defaults | kwargs | _ENCODING


def _prepared(dsn: Any, given: Any) -> tuple[str, dict[str, Any]]:
    kwargs = {name: value for name, value in (given or {}).items() if name not in _NOT_OURS}
    return dsn or "", with_defaults(dsn or "", kwargs)
