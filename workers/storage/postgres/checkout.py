"""Borrowing connections from a pool that belongs to somebody else: unharmed by its settings, and without leaving a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ...errors import StorageRejectedError, StorageUnavailableError
from .lender import Lender

__all__ = ["PLANNER", "STATEMENT_SECONDS", "Checkout", "fetch_on", "translated"]

T = TypeVar("T")

#: No statement of the runtime takes longer; a server that does not answer by then counts as gone.
STATEMENT_SECONDS = 30.0

#: How statements that look for rows of the job table are planned, together with an `id = ANY` or one fitting index: walk
#: that index, join by hash. A queue is full one minute and empty the next, and its statistics are of some other minute: left
#: to itself the planner reads five million waiting jobs to find ten that are due, or joins them each with each.
#: (With ways forbidden, costs mean nothing; they must not start the JIT compiler.)
PLANNER = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_PLANNED = "".join(f"SET LOCAL {name} = {value}; " for name, value in PLANNER.items())

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
#: pg_settings leaves out what this version of the server does not have.
_PROFILE = "SELECT name, setting FROM pg_settings WHERE name = ANY(%(names)s)"

#: How often a statement is tried that the server broke off to end a deadlock.
_ATTEMPTS = 5

#: Not the caller's fault and maybe over when tried again. (psycopg files some of them under ProgrammingError and others.)
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,
    errors.InFailedSqlTransaction,
    errors.IdleInTransactionSessionTimeout,
    TimeoutError,
    OSError,
)
#: Filed under OperationalError, but never going to work: too large, too complex.
_LIMITS = (errors.ProgramLimitExceeded, errors.StatementTooComplex)
_MISSING = (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into the port's two."""
    try:
        yield
    except _MISSING as error:
        raise StorageRejectedError(
            f"{_first_line(error)}; run `workers migrate`, or check the search_path"
        ) from error
    except (*_LIMITS, UnicodeError) as error:
        raise StorageRejectedError(
            f"the database can't store this: {_first_line(error)}"
        ) from error
    except _TRANSIENT as error:
        raise StorageUnavailableError(
            f"the database did not carry out a statement: {_first_line(error)}"
        ) from error
    except psycopg.Error as error:
        raise StorageRejectedError(
            f"the database refused a statement: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


class Checkout:
    """Connections of `lender`: autocommit, READ COMMITTED, our search_path and no timeout too short for us, all put back.

    What a connection has is asked once in its life. On ordinary connections nothing needs to be set.
    """

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._search_path: str | None = None
        self._repairs: WeakKeyDictionary[psycopg.AsyncConnection[Any], dict[str, str]] = (
            WeakKeyDictionary()
        )

    async def fetch(
        self, sql: str, params: dict[str, Any], *, prepare: bool | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """Run one statement and return its rows; raises the port's errors.

        Prepared, a statement keeps its plan when the table grows: fit for inserts, and for functions that see to theirs.
        """
        return await self.run(lambda conn: fetch_on(conn, sql, params, prepare=prepare))

    async def search(
        self, sql: str, params: dict[str, Any], *, lock_timeout: str = ""
    ) -> Sequence[tuple[Any, ...]]:
        """Run one statement that looks for rows of the job table: planned as it is run, by PLANNER, in one round trip."""
        limits = f"SET LOCAL lock_timeout = '{lock_timeout}'; " if lock_timeout else ""
        text = _PLANNED + limits + sql

        async def work(conn: psycopg.AsyncConnection[Any]) -> Sequence[tuple[Any, ...]]:
            # several statements in one message are a transaction of their own
            async with psycopg.AsyncClientCursor(conn, row_factory=tuple_row) as cursor:
                await cursor.execute(text, params)
                while cursor.nextset():
                    pass
                return await cursor.fetchall() if cursor.description else []

        return await self.run(work)

    async def run(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Do `work`, which is one statement or one transaction; raises the port's errors.

        What the server broke off to end a deadlock did nothing, and is done again.
        """
        with translated():
            for _ in range(_ATTEMPTS - 1):
                try:
                    async with self.connection() as conn:
                        return await work(conn)
                except (errors.DeadlockDetected, errors.SerializationFailure):
                    pass
            async with self.connection() as conn:
                return await work(conn)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection, for STATEMENT_SECONDS at most."""
        async with asyncio.timeout(STATEMENT_SECONDS):
            conn = await self._lender.borrow()
            try:
                undo = await self._adjust(conn)
                try:
                    yield conn
                finally:
                    await undo()
            finally:
                await self._lender.give_back(conn)

    async def _adjust(self, conn: psycopg.AsyncConnection[Any]) -> Callable[[], Awaitable[None]]:
        """Make `conn` fit for our statements; returns what takes that back."""
        autocommit, isolation, read_only = conn.autocommit, conn.isolation_level, conn.read_only
        if not autocommit:
            await conn.set_autocommit(True)
        if isolation is not None:
            await conn.set_isolation_level(None)
        if read_only is not None:
            await conn.set_read_only(None)
        repairs = self._repairs.get(conn)
        if repairs is None:
            repairs = self._repairs[conn] = await self._inspect(conn)
        before = await _set(conn, repairs) if repairs else None

        async def undo() -> None:
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                await (
                    conn.close()
                )  # an unknown state is not given back; the pool replaces what is closed
                return
            try:
                if before:
                    await _set(conn, before)
                if not autocommit:
                    await conn.set_autocommit(False)
                if isolation is not None:
                    await conn.set_isolation_level(isolation)
                if read_only is not None:
                    await conn.set_read_only(read_only)
            except (
                psycopg.Error
            ):  # the statement itself was carried out: only the connection is lost
                await conn.close()

        return undo

    async def _inspect(self, conn: psycopg.AsyncConnection[Any]) -> dict[str, str]:
        """What has to be set on this connection at each checkout; usually nothing."""
        names = ["search_path", *_SETTINGS, *_TIMEOUTS]
        found = dict(await fetch_on(conn, _PROFILE, {"names": names}))
        if self._search_path is None:
            self._search_path = found["search_path"]
        wanted = _SETTINGS | {"search_path": self._search_path}
        repairs = {name: value for name, value in wanted.items() if found[name] != value}
        for name, least in _TIMEOUTS.items():
            if 0 < int(found.get(name, 0)) < least:
                repairs[name] = str(least)
        return repairs


async def fetch_on(
    conn: psycopg.AsyncConnection[Any],
    sql: str,
    params: dict[str, Any],
    *,
    prepare: bool | None = None,
) -> Sequence[tuple[Any, ...]]:
    """Run one statement on `conn` with plain tuples, whatever its own row and cursor factories."""
    async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(sql, params, prepare=prepare)
        return await cursor.fetchall() if cursor.description else []


async def _set(conn: psycopg.AsyncConnection[Any], settings: dict[str, str]) -> dict[str, str]:
    """Set session parameters; returns what they were."""
    names, values = list(settings), list(settings.values())
    rows = await fetch_on(
        conn,
        "SELECT item.name, current_setting(item.name), set_config(item.name, item.value, false)"
        " FROM unnest(%(names)s::text[], %(values)s::text[]) AS item (name, value)",
        {"names": names, "values": values},
    )
    return {name: before for name, before, _ in rows}
