"""A connection for claims alone, always at hand, and set up for how they are to be planned.

To borrow one from the pool for each claim, and to tell the planner each time, costs a tenth of a millisecond each: a good
part of the way from a wake-up to a job. It is made in the background; while there is none, or it is at work for another
queue, claims go through the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row

from .checkout import STATEMENT_SECONDS, Checkout, insisted, settings, translated
from .links import SETUP_SECONDS, AsyncLink

__all__ = ["CLAIM_PLANNER", "ClaimLink"]

T = TypeVar("T")

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
        self._cursor: psycopg.AsyncCursor[tuple[Any, ...]] | None = None
        self._making: asyncio.Task[None] | None = None
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
        self._busy = True
        try:
            with translated():
                return await insisted(lambda: _run(cursor, sql, params))
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

    def _is_time(self) -> bool:
        """To make one. Through a pooler it would be none of its own."""
        return (
            self._making is None and self._clock() >= self._again_at and not self._checkout.pooled
        )

    async def _make(self) -> None:
        try:
            self._cursor = (await self._connected()).cursor(row_factory=tuple_row)
            self._again_in = _AGAIN_FIRST
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
            await link.execute(settings("SET", CLAIM_PLANNER).encode())
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
        if (making := self._making) is not None:
            making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await making
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()


async def _run(
    cursor: psycopg.AsyncCursor[tuple[Any, ...]], sql: str, params: dict[str, Any]
) -> Sequence[tuple[Any, ...]]:
    await cursor.execute(sql, params, prepare=True)
    return await cursor.fetchall()
