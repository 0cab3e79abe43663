"""Borrowed connections made fit for our statements, and put back as they were.

What a session is set to is asked once in the life of a connection, and again when a statement is refused: somebody may have
changed it since. On ordinary connections nothing needs to be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ...errors import StorageRejectedError
from .literals import plain

__all__ = ["Fitted", "Fitting", "fetch_on"]

_Connection = psycopg.AsyncConnection[Any]

#: What our statements need of a session. A timeout in milliseconds is raised to this where it is set, and shorter.
_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
}
_TIMEOUTS = {
    "statement_timeout": 10_000,
    "transaction_timeout": 10_000,
    "idle_in_transaction_session_timeout": 10_000,
    "lock_timeout": 5_000,
}
_BACKEND = "SELECT pg_backend_pid()"
#: pg_settings leaves out what this version of the server does not have, and the role.
_PROFILE = (
    "SELECT name, setting FROM pg_settings WHERE name = ANY(%(names)s::text[])"
    " UNION ALL SELECT 'role', current_setting('role')"
)


class Fitting:
    """Makes connections of one pool fit, and remembers what each of them needs."""

    def __init__(self) -> None:
        #: Of the first connection; every other one gets them.
        self.search_path: str | None = None
        self._role: str | None = None
        #: Whether they go through a pooler, which lends one server connection to many; None: not known yet.
        self.pooled: bool | None = None
        self.repairs: WeakKeyDictionary[_Connection, dict[str, str]] = WeakKeyDictionary()

    def fitted(self, conn: _Connection) -> Fitted:
        """`conn` as it is, to be prepared."""
        return Fitted(self, conn)

    def is_elsewhere(self, conn: _Connection) -> bool:
        """Whether somebody has set the search_path of this connection since it was looked at.

        A server of version 18 or newer reports that by itself. Where the tables of two schemas have the same names, no
        statement would be refused.
        """
        reported = conn.pgconn.parameter_status(b"search_path")
        if reported is None or self.pooled or "search_path" in self.repairs[conn]:
            return False
        return reported.decode() != self.search_path

    async def inspect(self, conn: _Connection) -> dict[str, str]:
        """What has to be set on this connection as it is now; usually nothing."""
        if self.pooled is None:
            # who answers is not who was connected to
            ((backend,),) = await fetch_on(conn, _BACKEND, {}, prepare=False)
            self.pooled = backend != conn.info.backend_pid
        names = ["search_path", *_SETTINGS, *_TIMEOUTS]
        found = dict(await fetch_on(conn, _PROFILE, {"names": names}, prepare=False))
        if self.search_path is None:
            self.search_path = found["search_path"]
        if self.pooled:
            _check_pooled(found)
            return {}
        self._role = self._role or found["role"]
        wanted = _SETTINGS | {"search_path": self.search_path, "role": self._role}
        repairs = {name: value for name, value in wanted.items() if found[name] != value}
        for name, least in _TIMEOUTS.items():
            if 0 < int(found.get(name, 0)) < least:
                repairs[name] = str(least)
        return repairs

    def doubt_role(self) -> None:
        """Something was refused under it: the first connection may have had one that somebody left behind there."""
        if self._role != "none":
            self._role = None
            self.repairs.clear()


class Fitted:
    """A connection while it is borrowed."""

    __slots__ = ("_before", "_driver", "_fitting", "_prepares", "conn")

    def __init__(self, fitting: Fitting, conn: _Connection) -> None:
        self.conn = conn
        self._fitting = fitting
        self._driver = conn.autocommit, conn.isolation_level, conn.read_only
        self._prepares = conn.prepare_threshold
        self._before: dict[str, str] = {}

    async def prepare(self) -> None:
        """Autocommit, READ COMMITTED, UTF8, our search_path and no timeout too short for us."""
        conn, repairs = self.conn, self._fitting.repairs
        autocommit, isolation, read_only = self._driver
        if not autocommit:
            await conn.set_autocommit(True)
        if isolation is not None:
            await conn.set_isolation_level(None)
        if read_only is not None:
            await conn.set_read_only(None)
        # first: under SQL_ASCII the driver reads no text, under LATIN1 and others the server can't send every row
        if _encoding(conn) != "UTF8":
            await self._set({"client_encoding": "UTF8"})
        if conn not in repairs or self._fitting.is_elsewhere(conn):
            repairs[conn] = await self._fitting.inspect(conn)
        if self._fitting.pooled:  # the next statement may find itself on another one
            conn.prepare_threshold = None
        if repairs[conn]:
            await self._set(repairs[conn])

    async def changed(self) -> bool:
        """Whether somebody has changed this session since it was looked at. If so, it is fit again."""
        if self.conn.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        repairs = await self._fitting.inspect(self.conn)
        if not repairs:
            self._fitting.doubt_role()
            return False
        await self._set(repairs)
        self._fitting.repairs[self.conn] = self._fitting.repairs.get(self.conn, {}) | repairs
        return True

    def forget(self) -> None:
        """Look at this session again when it is borrowed next."""
        self._fitting.repairs.pop(self.conn, None)

    async def undo(self) -> None:
        """Put everything back."""
        conn = self.conn
        autocommit, isolation, read_only = self._driver
        if conn.pgconn.transaction_status != TransactionStatus.IDLE:
            # an unknown state is not given back; the pool replaces what is closed
            conn.pgconn.finish()
            return
        conn.prepare_threshold = self._prepares
        try:
            if self._before:
                await _set(conn, self._before)
            if not autocommit:
                await conn.set_autocommit(False)
            if isolation is not None:
                await conn.set_isolation_level(isolation)
            if read_only is not None:
                await conn.set_read_only(read_only)
        except psycopg.Error:
            # the statement itself was carried out: only the connection is lost
            conn.pgconn.finish()
        except BaseException:  # cancelled half-way
            conn.pgconn.finish()
            raise

    async def _set(self, settings: dict[str, str]) -> None:
        try:
            before = await _set(self.conn, settings)
        except psycopg.Error:  # nothing has been set
            raise
        except BaseException:
            # cancelled: the server may have set it, and what was there before is not known
            self.conn.pgconn.finish()
            raise
        self._before = before | self._before


def _check_pooled(found: dict[str, str]) -> None:
    """What is set through a pooler, the next user of that server connection would have."""
    for name, wanted in _SETTINGS.items():
        if found[name] != wanted:
            raise StorageRejectedError(
                f"the database is reached through a pooler, and {name} is {found[name]!r} there: make it {wanted!r} for "
                f"this role (ALTER ROLE ... SET {name} = '{wanted}'), or connect to the server itself"
            )


def _encoding(conn: _Connection) -> str:
    """As the server last reported it; some proxies don't."""
    return (conn.pgconn.parameter_status(b"client_encoding") or b"UTF8").decode()


async def fetch_on(
    conn: _Connection,
    sql: str,
    params: dict[str, Any],
    *,
    prepare: bool | None = None,
) -> Sequence[tuple[Any, ...]]:
    """Run one statement on `conn` with plain tuples, whatever its own row and cursor factories."""
    async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(sql, plain(params), prepare=prepare)
        return await cursor.fetchall() if cursor.description else []


async def _set(conn: _Connection, settings: dict[str, str]) -> dict[str, str]:
    """Set session parameters; returns what they were."""
    names, values = list(settings), list(settings.values())
    before = {name: _encoding(conn) for name in names if name == "client_encoding"}
    rows = await fetch_on(
        conn,
        "SELECT item.name, current_setting(item.name), set_config(item.name, item.value, false)"
        " FROM unnest(%(names)s::text[], %(values)s::text[]) AS item (name, value)",
        {"names": names, "values": values},
    )
    # under SQL_ASCII the driver returns bytes
    return dict(zip(names, (row[1] for row in rows), strict=True)) | before
