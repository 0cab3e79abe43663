"""Transactional jobs: the job's own SQL and its completion commit together.

The job is claimed like any other; then its row is locked, with its token, in the transaction that the job works in, and
removed in it when the job returns. Whatever the job raises rolls everything back, and its outcome is written afterwards
under the same token by the completer. These connections are their own, never the claimer's or completer's: as many as run
at once, which is at most one for each worker of the queue. Nothing of ours is prepared on them: a plan that was made when
the table was empty would read all of it for one row. What a job leaves behind on its session does not reach the next one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ... import failpoints
from ...errors import StorageRejectedError
from ...lifecycle import Archive
from ..base import Guard, Settlement, SyncTransactionalRun, TransactionalRun
from .checkout import STATEMENT_SECONDS, translated
from .fitting import fetch_on
from .kept_links import KeptLinks
from .links import AsyncLink, Link
from .literals import plain
from .shelf import Kept
from .statements import statement

__all__ = ["TransactionConnections"]

_LOCK, _FINISH, _ARCHIVE = statement("lock_run"), statement("finish_run"), statement("archive")

#: A server that is well answers a BEGIN at once; the lock on the row may have to be waited for.
_BEGIN_SECONDS, _LOCK_SECONDS = 2.0, 5.0


class TransactionConnections:
    """The connections of transactional jobs: made on demand, kept for the next one for a minute, closed together."""

    def __init__(
        self,
        connect: Callable[[], Link],
        connect_async: Callable[[], Awaitable[AsyncLink]],
        *,
        pooled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._links = KeptLinks(connect, connect_async, pooled)

    def open(self) -> None:
        """Close connections that were idle for long, from now on. On the event loop."""
        self._links.open()

    async def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._links.close()

    def make_room(self) -> bool:
        """Others need a connection that the server refuses: close an idle one; False where none is."""
        return self._links.make_room()

    @asynccontextmanager
    async def run(self, session: int, guard: Guard) -> AsyncIterator[TransactionalRun | None]:
        """One attempt on an asynchronous connection; None when the job is no longer this claim's."""
        with translated():
            kept, transaction, held = await self._begin_async(_lock_params(session, guard))
        raised = False
        try:
            async with transaction:
                failpoints.hit("transaction begun")
                try:
                    yield _Run(kept, session) if held else None
                except BaseException:
                    raised, kept.link.patience = True, _LOCK_SECONDS
                    raise
            failpoints.hit("transaction committed")
        except psycopg.Error:
            if raised:  # the job's own
                raise
            with translated():
                raise
        finally:
            await self._links.give_back_async(kept, dirty=held)

    @contextmanager
    def run_sync(self, session: int, guard: Guard) -> Iterator[SyncTransactionalRun | None]:
        """The same on a synchronous connection, for a job in a thread."""
        with translated():
            kept, transaction, held = self._begin(_lock_params(session, guard))
        raised = False
        try:
            with transaction:
                failpoints.hit("transaction begun")
                try:
                    yield _SyncRun(kept, session) if held else None
                except BaseException:
                    raised, kept.link.patience = True, _LOCK_SECONDS
                    raise
            failpoints.hit("transaction committed")
        except psycopg.Error:
            if raised:  # the job's own
                raise
            with translated():
                raise
        finally:
            self._links.give_back(kept, dirty=held)

    async def _begin_async(
        self, params: dict[str, int]
    ) -> tuple[Kept[AsyncLink], AsyncExitStack, bool]:
        """A connection in a transaction, and whether that holds the job's row."""
        while True:
            kept = await self._links.take_async()
            link = kept.link
            try:
                async with AsyncExitStack() as stack:
                    link.patience = _BEGIN_SECONDS
                    await stack.enter_async_context(link.transaction())
                    link.patience = _LOCK_SECONDS
                    rows = await fetch_on(link, _LOCK, params, prepare=False)
                    link.patience = None  # what the job does takes as long as it takes
                    return kept, stack.pop_all(), bool(rows)
            except BaseException as error:
                if not self._links.broke(kept, error):
                    raise

    def _begin(self, params: dict[str, int]) -> tuple[Kept[Link], ExitStack, bool]:
        """The same on a synchronous connection."""
        while True:
            kept = self._links.take()
            link = kept.link
            try:
                with ExitStack() as stack:
                    link.patience = _BEGIN_SECONDS
                    stack.enter_context(link.transaction())
                    link.patience = _LOCK_SECONDS
                    cursor = psycopg.Cursor(link, row_factory=tuple_row)
                    rows = cursor.execute(_LOCK, params, prepare=False).fetchall()
                    link.patience = None
                    return kept, stack.pop_all(), bool(rows)
            except BaseException as error:
                if not self._links.broke(kept, error):
                    raise


class _Run:
    """See `storage.base.TransactionalRun`."""

    def __init__(self, kept: Kept[AsyncLink], session: int) -> None:
        self.connection = kept.link
        self._baseline = kept.baseline
        self._session = session

    async def finish(self, settlement: Settlement) -> None:
        _check_open(self.connection.pgconn.transaction_status)
        failpoints.hit("transaction worked")
        # from here on nobody else ends it, should the server say nothing
        self.connection.patience = STATEMENT_SECONDS
        sql, params = _finishing(self._session, settlement)
        with translated():
            cursor = psycopg.AsyncClientCursor(self.connection, row_factory=tuple_row)
            _check_written(await cursor.execute(self._baseline.around(sql), params))
        failpoints.hit("transaction written")


class _SyncRun:
    """See `storage.base.SyncTransactionalRun`."""

    def __init__(self, kept: Kept[Link], session: int) -> None:
        self.connection = kept.link
        self._baseline = kept.baseline
        self._session = session

    def finish(self, settlement: Settlement) -> None:
        _check_open(self.connection.pgconn.transaction_status)
        failpoints.hit("transaction worked")
        self.connection.patience = STATEMENT_SECONDS
        sql, params = _finishing(self._session, settlement)
        with translated():
            cursor = psycopg.ClientCursor(self.connection, row_factory=tuple_row)
            _check_written(cursor.execute(self._baseline.around(sql), params))
        failpoints.hit("transaction written")


def _lock_params(session: int, guard: Guard) -> dict[str, int]:
    return {"id": guard.id, "session": session, "token": guard.token}


def _finishing(session: int, settlement: Settlement) -> tuple[str, dict[str, Any]]:
    guard, transition = settlement.guard, settlement.transition
    if isinstance(transition, Archive):
        own = {"states": [transition.state], "reasons": [transition.reason]}
        held = {"ids": [guard.id], "tokens": [guard.token]}
        return _ARCHIVE, plain({"session": session} | held | own)
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


def _check_written(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> None:
    cursor.nextset()  # the first is Baseline.around's
    if cursor.rowcount != 1:
        raise StorageRejectedError("the job's row is gone although its transaction held it")
