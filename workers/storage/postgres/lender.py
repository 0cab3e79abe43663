"""Where statements get their connections: from the pool; and where that has lost its own, from here until it is well again.

A pool that can't connect tries again after one second, two, four, and so on. After an outage of a minute it might look away
for another one, while the server is back and the session's thread, which tries all the time, has its connection. So a pool
that has lost one and has none ready is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from ...errors import ConfigurationError
from .room import connected_async

__all__ = ["AnyPool", "Lender", "users"]

AnyPool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]
_Connection = psycopg.AsyncConnection[Any]

#: Seconds to wait for the pool before it is asked how it is. Callers bound the whole wait.
_PATIENCE, _LONG = 1.0, 60.0
#: Seconds that an opened pool gets to make its first connection.
_FIRST = 30.0
#: Seconds after which one that is unwell is asked again.
_ASK_EVERY = 10.0


class Lender:
    """Lends connections of `pool`, or, while that is unwell, of its own, made by `connect`; where that is refused, after
    `make_room`."""

    def __init__(
        self,
        pool: AnyPool,
        connect: Callable[[], Awaitable[_Connection]],
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._make_room = make_room
        self._unwell = False
        #: When the pool is asked again, although it has none ready: all it has may go from hand to hand.
        self._ask_at = 0.0
        #: Failures to connect that the pool got over.
        self._overcome = 0
        self._own: set[_Connection] = set()
        self._spare: list[_Connection] = []
        self._putting: set[asyncio.Future[None]] = set()

    @property
    def size(self) -> int:
        """How many connections the pool has at most."""
        return self._pool.max_size

    async def borrow(self) -> _Connection:
        """A connection, to be given back."""
        while True:
            if self._unwell and not self._is_ready() and time.monotonic() < self._ask_at:
                try:
                    conn = self._spare.pop() if self._spare else await self._made()
                except psycopg.OperationalError:
                    if self._is_ready():  # it took the room that was made
                        continue
                    raise
                self._own.add(conn)
                return conn
            if self._is_ready():
                with contextlib.suppress(PoolTimeout):  # somebody was quicker
                    return await self._pool.getconn(timeout=_PATIENCE)
            lent = await self._queued()
            if lent is not None:
                return lent

    async def _queued(self) -> _Connection | None:
        """One of the pool's, after those who have asked before us. None: it is unwell, or its loop is closing.

        In one place of the line: whoever gives up and asks again is the last one, and leaves a dead place behind.
        """
        if self._is_abandoned():
            self._unwell, self._ask_at = True, time.monotonic() + _ASK_EVERY
            return None
        waiting = asyncio.ensure_future(self._pool.getconn(timeout=_LONG))
        try:
            while not self._unwell or time.monotonic() >= self._ask_at:
                await asyncio.wait([waiting], timeout=_PATIENCE)
                if waiting.done():
                    return None if waiting.cancelled() else waiting.result()
                # busy with others, or looking for the server? They may have found it gone, or one of them lost
                self._ask_at = time.monotonic() + _ASK_EVERY
                self._unwell = (
                    self._unwell or self._is_abandoned() or self._failures() > self._overcome
                )
        except BaseException:
            self._leave(waiting)
            raise
        self._leave(waiting)
        return None

    def _leave(self, waiting: asyncio.Future[_Connection]) -> None:
        def left(waiting: asyncio.Future[_Connection]) -> None:
            if not waiting.cancelled() and waiting.exception() is None:
                self._put(waiting.result())  # it came at the last moment

        waiting.add_done_callback(left)
        waiting.cancel()

    def _put(self, conn: _Connection) -> asyncio.Future[None]:
        """Give the pool its connection, whoever is cancelled: half-way it would be nobody's, and never replaced."""
        putting = asyncio.ensure_future(self._pool.putconn(conn))
        self._putting.add(putting)
        putting.add_done_callback(self._putting.discard)
        return putting

    def _is_abandoned(self) -> bool:
        """Whether the pool's own tasks have ended, as all do when their loop closes: it makes no connections any more, and
        may have lost those that it had. (It has no public way to tell.)"""
        return any(task.done() for task in getattr(self._pool, "_workers", ()))

    def _is_ready(self) -> bool:
        return bool(self._pool.get_stats().get("pool_available"))

    async def _made(self) -> _Connection:
        return await connected_async(self._connect, self._make_room)

    async def give_back(self, conn: _Connection) -> None:
        """Take back a connection; what is lost is replaced."""
        lost = conn.pgconn.transaction_status == TransactionStatus.UNKNOWN
        if conn in self._own:
            self._own.discard(conn)
            if lost or not self._unwell:
                await conn.close()
            else:
                self._spare.append(conn)
            return
        if lost:
            self._unwell, self._ask_at = True, time.monotonic() + _ASK_EVERY
        elif self._unwell:
            self._unwell, self._overcome = False, self._failures()
            await self.close()
        await asyncio.shield(self._put(conn))

    def _failures(self) -> int:
        failures = self._pool.get_stats().get("connections_errors", 0)
        self._overcome = min(self._overcome, failures)  # whoever exports them may set them back
        return failures

    async def close(self) -> None:
        """Close spare connections."""
        while self._spare:
            await self._spare.pop().close()


class Users:
    """Who opens a pool that was not open, and who closes it: the last of the runners that share it."""

    def __init__(self) -> None:
        self._counts: WeakKeyDictionary[AnyPool, int] = WeakKeyDictionary()

    async def enter(self, pool: AnyPool) -> bool:
        """Use `pool`; True when it is to be left. One that the application has opened itself is not."""
        if not pool.closed and pool not in self._counts:
            return False
        self._counts[pool] = self._counts.get(pool, 0) + 1
        try:
            await pool.open()
        except BaseException as error:
            await self.leave(pool)
            if not isinstance(error, psycopg.OperationalError):
                raise
            raise ConfigurationError(
                "this pool was closed, and psycopg_pool can't open it again; give a new pool or a DSN, or open the pool"
                " yourself and leave it open for as long as anything uses it"
            ) from error
        return True

    async def wait(self, pool: AnyPool) -> None:
        """Until `pool` has its first connection: asked before, it makes a second one, for which there may be no room.

        Its own `wait` is for one at a time, waits until it is full, whatever others have of it, and closes it in the end.
        """
        # (one without a least number makes none before)
        until = time.monotonic() + (_FIRST if pool.min_size else 0.0)
        while time.monotonic() < until and not pool.closed:
            stats = pool.get_stats()
            if stats.get("pool_available") or stats.get("requests_num"):  # or others have it in use
                return
            await asyncio.sleep(0.005)

    async def leave(self, pool: AnyPool) -> None:
        """Close `pool` if nobody else uses it."""
        self._counts[pool] -= 1
        if not self._counts[pool]:
            del self._counts[pool]
            await pool.close()


#: Of all pools of this process.
users = Users()
