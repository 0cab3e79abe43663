"""A connection for claims alone, always at hand, and set up for how they are to be planned.

To borrow one from the pool for each claim, and to tell the planner each time, costs a tenth of a millisecond each: a good
part of the way from a wake-up to a job. It is made in the background; while there is none, or it is at work for another
queue, claims go through the pool.

Where the server has few connections left it is not made, or soon given up: there are those who can't do without theirs, such
as a runner that starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row

from ...errors import StorageError
from .checkout import STATEMENT_SECONDS, Checkout, insisted, settings, translated
from .links import SETUP_SECONDS, AsyncLink

__all__ = ["CLAIM_PLANNER", "ClaimLink"]

T = TypeVar("T")
_Cursor = psycopg.AsyncCursor[tuple[Any, ...]]

logger = logging.getLogger("workers")

#: How claims are planned: see queries/claim.sql.
CLAIM_PLANNER = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
#: Seconds until a new one is tried for, after one was lost or refused; doubled each time.
_AGAIN_FIRST, _AGAIN_MOST = 1.0, 60.0
#: How many of the server's connections have to be free, of all that it allows: to make one, and to keep it.
_FREE_TO_MAKE, _FREE_TO_KEEP = 0.1, 0.05
#: Seconds until that is looked at, after it was made and from then on.
_LOOK_FIRST, _LOOK_EVERY = 2.0, 60.0
#: Seconds that whatever is on its way gets to notice that it was cancelled.
_END_SECONDS = 1.0

#: Of connections of every role. (What others do can be seen by few, that they are there by all.)
_FREE = """
SELECT 1 - (
    count(datid) + current_setting('superuser_reserved_connections')::integer
    + coalesce(current_setting('reserved_connections', true), '0')::integer
) / current_setting('max_connections')::float
FROM pg_stat_activity
"""


class ClaimLink:
    """Runs claims: on a connection of its own, made by `connect`, or else on one of `checkout`'s. Event loop only."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[AsyncLink]],
        checkout: Checkout,
        clock: Callable[[], float],
    ) -> None:
        self._connect = connect
        self._checkout = checkout
        self._clock = clock
        self._cursor: _Cursor | None = None
        self._making: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_at = float("-inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = False
        self._again_at, self._again_in = float("-inf"), _AGAIN_FIRST

    async def claim(self, sql: str, params: dict[str, Any]) -> Sequence[tuple[Any, ...]]:
        """One claim; raises the port's errors."""
        cursor = self._cursor
        if cursor is None or self._busy:
            if cursor is None and self._is_time():
                self._loop = asyncio.get_running_loop()
                self._making = asyncio.create_task(self._make())
            return await self._checkout.search(sql, params, planner=CLAIM_PLANNER)
        rows = await self._use(cursor, partial(insisted, partial(_run, cursor, sql, params)))
        if self._clock() >= self._look_at and self._cursor is cursor:
            self._look_at = self._clock() + _LOOK_EVERY
            self._looking = asyncio.create_task(self._look(cursor))
        return rows

    async def _use(self, cursor: _Cursor, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` on the link; raises the port's errors."""
        self._busy = True
        try:
            with translated():
                return await work()
        except BaseException:
            # whatever it was: a new one may do, as where a migration changed what a prepared statement returns
            if self._cursor is cursor:
                self._cursor = None
                self._later()
            raise
        finally:
            self._busy = False
            if self._cursor is not cursor:
                cursor.connection.pgconn.finish()

    async def _look(self, cursor: _Cursor) -> None:
        """Leave the connection to others if there are few."""
        if self._busy or self._cursor is not cursor:
            return
        with contextlib.suppress(StorageError):
            if await self._use(cursor, partial(_free, cursor)) < _FREE_TO_KEEP:
                logger.debug("the server has few connections left: claims go through the pool")
                self._gave_way()

    def _is_time(self) -> bool:
        """To make one. Through a pooler it would be none of its own."""
        return (
            # done: of an eager task that failed at once
            (self._making is None or self._making.done())
            and self._clock() >= self._again_at
            and not self._checkout.pooled
        )

    async def _make(self) -> None:
        try:
            self._cursor = _cursor(await self._connected())
            self._again_in = _AGAIN_FIRST
            self._look_at = self._clock() + _LOOK_FIRST
        except (psycopg.Error, OSError) as error:
            # the pool does it too, a little slower
            logger.debug("claims go through the pool: %s", error)
            self._later()
        finally:
            self._making = None

    async def _connected(self) -> AsyncLink:
        link = await self._connect()
        try:
            link.patience = SETUP_SECONDS
            await self._checkout.fit(link)
            if await _free(_cursor(link)) < _FREE_TO_MAKE:
                raise psycopg.OperationalError("the server has few connections left")
            # when our own patience is over the connection is closed, and a server that waits for a lock does not notice
            limits = {"statement_timeout": f"{1000 * STATEMENT_SECONDS:.0f}"}
            command = settings("SET", CLAIM_PLANNER | limits).encode()
            # several statements: not to be prepared, although the pool's may be at once
            await link.execute(command, prepare=False)
            link.patience = STATEMENT_SECONDS
        except BaseException:
            link.pgconn.finish()
            raise
        return link

    def _later(self) -> None:
        self._again_at = self._clock() + self._again_in
        self._again_in = min(_AGAIN_MOST, 2 * self._again_in)

    def giving_way(self, connect: Callable[[], T]) -> Callable[[], T]:
        """`connect`, for connections that are needed more: where it is refused, this one makes room for the next try."""

        def connected() -> T:
            try:
                return connect()
            except psycopg.OperationalError:
                self._give_way()
                raise

        return connected

    def giving_way_async(
        self, connect: Callable[[], Awaitable[AsyncLink]]
    ) -> Callable[[], Awaitable[AsyncLink]]:
        """The same for an asynchronous one."""

        async def connected() -> AsyncLink:
            try:
                return await connect()
            except psycopg.OperationalError:
                self._give_way()
                raise

        return connected

    def _give_way(self) -> None:
        """From any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._gave_way)

    def _gave_way(self) -> None:
        making, self._making = self._making, None
        cursor, self._cursor = self._cursor, None
        if cursor is not None or making is not None:
            self._again_in = _AGAIN_MOST
            self._later()
        if making is not None:
            making.cancel()
        if cursor is not None and not self._busy:  # else when it has done its claim
            cursor.connection.pgconn.finish()

    async def close(self) -> None:
        """Close the connection. There are no claims any more."""
        for task in (self._making, self._looking):
            if task is not None:
                await _cancelled(task)
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel `task`, and once more: then the driver no longer waits for the server's answer."""
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=_END_SECONDS)
        if task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await task  # or its traceback would keep a connection that was being made
            return


def _cursor(link: AsyncLink) -> _Cursor:
    """Not of the link's own kind, which the pool's `configure` may have set: it may know no names of parameters."""
    return psycopg.AsyncCursor(link, row_factory=tuple_row)


async def _free(cursor: _Cursor) -> float:
    """Which part of the connections that the server allows is free."""
    await cursor.execute(_FREE)
    ((share,),) = await cursor.fetchall()
    return float(share)


async def _run(cursor: _Cursor, sql: str, params: dict[str, Any]) -> Sequence[tuple[Any, ...]]:
    await cursor.execute(sql, params, prepare=True)
    return await cursor.fetchall()
