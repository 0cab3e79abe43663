"""Borrowing connections from a pool that belongs to somebody else: unharmed by its settings, and without leaving a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import tuple_row

from ...errors import (
    RIGHTS,
    StorageError,
    StorageRejectedError,
    StorageUnavailableError,
    StorageUnusableError,
)
from .fitting import Fitted, Fitting, fetch_on
from .lender import Lender
from .literals import plain

__all__ = [
    "PLANNER",
    "STATEMENT_SECONDS",
    "Checkout",
    "insisted",
    "is_locked",
    "is_partial",
    "settings",
    "translated",
]

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

#: How often a statement is tried that the server broke off to end a deadlock.
_ATTEMPTS = 5

#: Another connection will do. This one leads to what was a primary once, or lacks what the driver has prepared on it.
_SPOILED = (errors.ReadOnlySqlTransaction, errors.InvalidSqlStatementName)
#: Not the caller's fault and maybe over when tried again. (psycopg files some of them under ProgrammingError and others.)
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    *_SPOILED,
    errors.InFailedSqlTransaction,
    errors.IdleInTransactionSessionTimeout,
    TimeoutError,
    OSError,
)
_MISSING = (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn)
_TOO_MUCH = (errors.ProgramLimitExceeded, errors.StatementTooComplex, UnicodeError)


class translated:  # noqa: N801 - `with translated():`, which a generator would make twice as slow
    """Turn the driver's errors into the port's two."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: object
    ) -> None:
        if error is None or (ours := _translation(error)) is None:
            return
        try:
            raise ours from error
        finally:
            del ours  # or it would be in a frame of its own traceback, which keeps all that the statement had in hand


def _translation(error: BaseException) -> StorageError | None:
    """What is raised for it; None if that is itself."""
    if isinstance(error, _MISSING):
        return StorageUnusableError(
            f"{_first_line(error)}; run `workers migrate`, or check the search_path"
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return StorageUnusableError(f"{_first_line(error)}; {RIGHTS}")
    if is_notify_queue_full(error):  # somebody listens, and has been in a transaction for long
        return StorageUnavailableError(f"notifications can't be sent now: {_first_line(error)}")
    if isinstance(error, _TOO_MUCH):
        return StorageRejectedError(f"the database can't store this: {_first_line(error)}")
    if isinstance(error, _TRANSIENT):
        return StorageUnavailableError(
            f"the database did not carry out a statement: {_first_line(error)}"
        )
    if not isinstance(error, psycopg.Error):
        return None
    # the connection is gone, for whatever reason
    if error.diag.severity_nonlocalized in ("FATAL", "PANIC"):
        return StorageUnavailableError(f"the database ended a connection: {_first_line(error)}")
    return StorageRejectedError(f"the database refused a statement: {_first_line(error)}")


def is_notify_queue_full(error: BaseException | None) -> bool:
    """Whether the server has no room left for notifications. (Of the whole server: any application's listener may be the
    reason. The word is in the message in every language.)"""
    return isinstance(error, errors.ProgramLimitExceeded) and "NOTIFY" in str(error)


def is_locked(error: StorageError) -> bool:
    """Whether the statement has waited for its lock_timeout."""
    return isinstance(error.__cause__, errors.LockNotAvailable)


def is_partial(error: StorageError) -> bool:
    """Whether workers_complete, which does all or nothing, found that some jobs are no longer the session's."""
    return getattr(error.__cause__, "sqlstate", None) == "WK001"


def settings(command: str, values: Mapping[str, str]) -> str:
    """Statements that set the `values`; `command` is SET or SET LOCAL."""
    return "".join([f"{command} {name} = {value}; " for name, value in values.items()])


async def insisted(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`; what the server broke off to end a deadlock did nothing, and is done again."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await work()
        except (errors.DeadlockDetected, errors.SerializationFailure):
            pass
    return await work()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


class Checkout:
    """Connections of `lender`, made fit for our statements (see fitting.py) and put back as they were."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._fitting = Fitting()

    async def fit(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Make a connection fit that is ours, for good."""
        await self._fitting.fitted(conn).prepare()

    @property
    def search_path(self) -> str | None:
        """That of the pool's first connection, once there was one."""
        return self._fitting.search_path

    @property
    def pooled(self) -> bool:
        """Whether there is a pooler between us and the server; known once there was a connection."""
        return bool(self._fitting.pooled)

    async def fetch(
        self, sql: str, params: dict[str, Any], *, prepare: bool | None = None
    ) -> Sequence[tuple[Any, ...]]:
        """Run one statement and return its rows; raises the port's errors.

        Prepared, a statement keeps its plan when the table grows: fit for inserts, and for functions that see to theirs.
        """
        return await self.run(lambda conn: fetch_on(conn, sql, params, prepare=prepare))

    async def search(
        self,
        sql: str,
        params: dict[str, Any],
        *,
        planner: Mapping[str, str] = PLANNER,
        lock_timeout: str = "",
    ) -> Sequence[tuple[Any, ...]]:
        """Run one statement that looks for rows of the job table: planned as it is run, by PLANNER, in one round trip."""
        limits = f"SET LOCAL lock_timeout = '{lock_timeout}'; " if lock_timeout else ""
        text = settings("SET LOCAL", planner) + limits + sql

        async def work(
            conn: psycopg.AsyncConnection[Any], first: str = ""
        ) -> Sequence[tuple[Any, ...]]:
            # several statements in one message are a transaction of their own
            async with psycopg.AsyncClientCursor(conn, row_factory=tuple_row) as cursor:
                await cursor.execute(first + text, plain(params))
                while cursor.nextset():
                    pass
                return await cursor.fetchall() if cursor.description else []

        try:
            return await self.run(work)
        except StorageUnavailableError as error:
            if not is_notify_queue_full(error.__cause__):
                raise
        return await self.run(lambda conn: work(conn, "SET LOCAL workers.notify = 'off'; "))

    async def run(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Do `work`, which is one statement or one transaction; raises the port's errors."""
        with translated():
            return await insisted(lambda: self._awake(work))

    async def _awake(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Once; and again where the server had ended the connection before, because it was idle: nothing was done.

        All of a pool's may be dead in that way. To wait before the next try would be to find the new ones dead as well.
        """
        for _ in range(self._lender.size):
            try:
                return await self._run(work)
            except errors.IdleSessionTimeout:
                pass
        return await self._run(work)

    async def _run(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Once; and again where it was refused under settings that somebody has changed meanwhile."""
        async with self._connection() as fitted:
            try:
                return await work(fitted.conn)
            except _TRANSIENT as error:
                if not isinstance(error, _SPOILED):
                    fitted.forget()
                    raise
                refused: Exception = error
            except psycopg.Error as error:
                refused = error
            if not await fitted.changed():
                if isinstance(refused, _SPOILED):
                    fitted.conn.pgconn.finish()
                raise refused
            return await work(fitted.conn)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Fitted]:
        """A connection, for STATEMENT_SECONDS at most."""
        async with asyncio.timeout(STATEMENT_SECONDS):
            conn = await self._lender.borrow()
            fitted = self._fitting.fitted(conn)
            try:
                try:
                    await fitted.prepare()
                    yield fitted
                finally:
                    await fitted.undo()
            finally:
                await self._lender.give_back(conn)
