"""Transactional jobs: the job's own SQL and its completion commit together.

The job is claimed like any other; then its row is locked, with its token, in the transaction that the job works in, and
removed in it when the job returns. Whatever the job raises rolls everything back, and its outcome is written afterwards
under the same token by the completer. These connections are their own, never the claimer's or completer's: as many as run
at once, which is at most one for each worker of the queue. Nothing of ours is prepared on them: a plan that was made when
the table was empty would read all of it for one row.
"""

from __future__ import annotations

import contextlib
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ...errors import StorageRejectedError
from ...lifecycle import Archive
from ..base import Guard, Settlement, SyncTransactionalRun, TransactionalRun
from .checkout import translated
from .fitting import fetch_on
from .statements import statement

__all__ = ["TransactionConnections"]

_LOCK, _FINISH, _ARCHIVE = statement("lock_run"), statement("finish_run"), statement("archive")


class TransactionConnections:
    """The connections of transactional jobs: made on demand, kept for the next one, closed together."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        connect_async: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
    ) -> None:
        self._connect = connect
        self._connect_async = connect_async
        # list.append and list.pop are atomic: the threads of synchronous jobs share these
        self._idle: list[psycopg.Connection[Any]] = []
        self._idle_async: list[psycopg.AsyncConnection[Any]] = []
        self._closed = False

    @asynccontextmanager
    async def run(self, session: int, guard: Guard) -> AsyncIterator[TransactionalRun | None]:
        """One attempt on an asynchronous connection; None when the job is no longer this claim's."""
        with translated():
            conn = await self._take_async()
        row_factory, raised = conn.row_factory, False
        try:
            async with conn.transaction():
                with translated():
                    rows = await fetch_on(conn, _LOCK, _lock_params(session, guard), prepare=False)
                try:
                    yield _Run(conn, session) if rows else None
                except BaseException:
                    raised = True
                    raise
        except psycopg.Error:
            if raised:  # the job's own
                raise
            with translated():
                raise
        finally:
            if conn.pgconn.transaction_status == TransactionStatus.IDLE and not self._closed:
                conn.row_factory = row_factory
                self._idle_async.append(conn)
            else:
                await conn.close()

    @contextmanager
    def run_sync(self, session: int, guard: Guard) -> Iterator[SyncTransactionalRun | None]:
        """The same on a synchronous connection, for a job in a thread."""
        with translated():
            conn = self._take()
        row_factory, raised = conn.row_factory, False
        try:
            with conn.transaction():
                with translated():
                    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
                    rows = cursor.execute(
                        _LOCK, _lock_params(session, guard), prepare=False
                    ).fetchall()
                try:
                    yield _SyncRun(conn, session) if rows else None
                except BaseException:
                    raised = True
                    raise
        except psycopg.Error:
            if raised:  # the job's own
                raise
            with translated():
                raise
        finally:
            if conn.pgconn.transaction_status == TransactionStatus.IDLE and not self._closed:
                conn.row_factory = row_factory
                self._idle.append(conn)
            else:
                conn.close()

    async def _take_async(self) -> psycopg.AsyncConnection[Any]:
        while self._idle_async:
            conn = self._idle_async.pop()
            if _is_quiet(conn):
                return conn
            await conn.close()
        return await self._connect_async()

    def _take(self) -> psycopg.Connection[Any]:
        with contextlib.suppress(IndexError):  # another thread may have taken the last one
            while True:
                conn = self._idle.pop()
                if _is_quiet(conn):
                    return conn
                conn.close()
        return self._connect()

    async def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._closed = True
        while self._idle_async:
            await self._idle_async.pop().close()
        while self._idle:
            self._idle.pop().close()


class _Run:
    """See `storage.base.TransactionalRun`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], session: int) -> None:
        self.connection = connection
        self._session = session

    async def finish(self, settlement: Settlement) -> None:
        _check_open(self.connection.pgconn.transaction_status)
        sql, params = _finishing(self._session, settlement)
        with translated():
            cursor = psycopg.AsyncCursor(self.connection, row_factory=tuple_row)
            _check_written((await cursor.execute(sql, params, prepare=False)).rowcount)


class _SyncRun:
    """See `storage.base.SyncTransactionalRun`."""

    def __init__(self, connection: psycopg.Connection[Any], session: int) -> None:
        self.connection = connection
        self._session = session

    def finish(self, settlement: Settlement) -> None:
        _check_open(self.connection.pgconn.transaction_status)
        sql, params = _finishing(self._session, settlement)
        with translated():
            cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
            _check_written(cursor.execute(sql, params, prepare=False).rowcount)


def _is_quiet(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server has said nothing unasked on an idle connection: its farewell, most likely."""
    with selectors.DefaultSelector() as selector:
        selector.register(conn.fileno(), selectors.EVENT_READ)
        return not selector.select(0)


def _lock_params(session: int, guard: Guard) -> dict[str, int]:
    return {"id": guard.id, "session": session, "token": guard.token}


def _finishing(session: int, settlement: Settlement) -> tuple[str, dict[str, Any]]:
    guard, transition = settlement.guard, settlement.transition
    if isinstance(transition, Archive):
        arrays = {"states": [transition.state], "reasons": [transition.reason]}
        return _ARCHIVE, {"session": session, "ids": [guard.id], "tokens": [guard.token]} | arrays
    return _FINISH, {"session": session, "id": guard.id, "token": guard.token}


def _check_open(status: int) -> None:
    if status == TransactionStatus.INERROR:
        raise StorageRejectedError(
            "the job left its transaction in error: a statement failed and the exception was swallowed; "
            "wrap statements that may fail in `with connection.transaction():`"
        )
    if status != TransactionStatus.INTRANS:
        raise StorageRejectedError(
            "the job ended its own transaction; a transactional job must not commit or roll back"
        )


def _check_written(rows: int) -> None:
    if rows != 1:
        raise StorageRejectedError("the job's row is gone although its transaction held it")
