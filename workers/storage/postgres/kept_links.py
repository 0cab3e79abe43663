"""The connections that jobs work on in their transactions: made on demand, cleaned after each job, kept for a minute."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from .baseline import Baseline
from .links import SETUP_SECONDS, AsyncLink, Link
from .room import connected, connected_async
from .shelf import Kept, Shelf, close

__all__ = ["KeptLinks"]

logger = logging.getLogger("workers")

#: A server that is well answers a reset at once.
_RESET_SECONDS = 2.0
#: How long a job waits for the connection of another one, where the server gives no more.
_WAIT_SECONDS = 5.0


class KeptLinks:
    """Of both kinds; one can't stand in for the other. Usable from threads."""

    def __init__(
        self,
        connect: Callable[[], Link],
        connect_async: Callable[[], Awaitable[AsyncLink]],
        pooled: Callable[[], bool],
    ) -> None:
        self._pooled = pooled
        self._connect = connect
        self._connect_async = connect_async
        self._shelf, self._async_shelf = Shelf.pair()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Close connections that were idle for long, from now on. On the event loop."""
        self._loop = asyncio.get_running_loop()

    async def take_async(self) -> Kept[AsyncLink]:
        """An idle connection, a new one, or that of another job, as soon as it is free."""
        shelf, deadline = self._async_shelf, time.monotonic() + _WAIT_SECONDS
        refusal = psycopg.OperationalError("no connection came free")
        has_room = has_waited = False
        while True:
            if not has_room and (kept := shelf.take()):
                return kept
            if has_room or has_waited or shelf.is_worth_asking:
                try:
                    return await self._make_async(has_room=has_room)
                except psycopg.OperationalError as error:
                    refusal = error
            left = deadline - time.monotonic()
            if left <= 0 or not shelf.is_worth_waiting:
                raise refusal
            found = await shelf.wait_async(left)
            if isinstance(found, Kept):
                return found
            has_room, has_waited = found, True

    def take(self) -> Kept[Link]:
        """The same on a synchronous connection."""
        shelf, deadline = self._shelf, time.monotonic() + _WAIT_SECONDS
        refusal = psycopg.OperationalError("no connection came free")
        has_room = has_waited = False
        while True:
            if not has_room and (kept := shelf.take()):
                return kept
            if has_room or has_waited or shelf.is_worth_asking:
                try:
                    return self._make(has_room=has_room)
                except psycopg.OperationalError as error:
                    refusal = error
            left = deadline - time.monotonic()
            if left <= 0 or not shelf.is_worth_waiting:
                raise refusal
            found = shelf.wait(left)
            if isinstance(found, Kept):
                return found
            has_room, has_waited = found, True

    async def _make_async(self, *, has_room: bool) -> Kept[AsyncLink]:
        shelf, link = self._async_shelf, None
        if not has_room:
            shelf.making()
        try:
            link = await connected_async(self._connect_async, shelf.make_room, is_made=has_room)
            link.patience = SETUP_SECONDS
            return Kept(link, await Baseline.of_async(link, pooled=self._pooled()))
        except BaseException as error:
            if link is not None:
                close(link)
            shelf.failed(error)
            raise

    def _make(self, *, has_room: bool) -> Kept[Link]:
        shelf, link = self._shelf, None
        if not has_room:
            shelf.making()
        try:
            link = connected(self._connect, shelf.make_room, is_made=has_room)
            link.patience = SETUP_SECONDS
            return Kept(link, Baseline.of(link, pooled=self._pooled()))
        except BaseException as error:
            if link is not None:
                close(link)
            shelf.failed(error)
            raise

    async def give_back_async(self, kept: Kept[AsyncLink], *, dirty: bool) -> None:
        """Keep the connection for the next job, if it is what it was before this one."""
        link = kept.link
        clean = link.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            if clean and dirty:
                clean, link.patience = False, _RESET_SECONDS
                await kept.baseline.restore_async(link)
                if link.configure is not None and kept.baseline.reset:
                    await link.configure(link)
                    # which may have added its handlers once more
                    await kept.baseline.restore_driver_async(link)
                clean = True
        except psycopg.Error as error:
            logger.debug("a connection can't be used again: %s", error)
        finally:
            self._end(kept, self._async_shelf, clean=clean)

    def give_back(self, kept: Kept[Link], *, dirty: bool) -> None:
        """The same for a synchronous connection."""
        link = kept.link
        clean = link.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            if clean and dirty:
                clean, link.patience = False, _RESET_SECONDS
                kept.baseline.restore(link)
                clean = True
        except psycopg.Error as error:
            logger.debug("a connection can't be used again: %s", error)
        finally:
            self._end(kept, self._shelf, clean=clean)

    def _end(self, kept: Kept[Any], shelf: Shelf[Any], *, clean: bool) -> None:
        if not clean:
            shelf.lost(kept)
            return
        shelf.put(kept)
        if self._loop is not None and self._timer is None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._close_old)

    def _close_old(self) -> None:
        """Close what was idle for long, and look again when the next one will have been. On the event loop."""
        due = [shelf.close_old() for shelf in (self._shelf, self._async_shelf)]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._loop is not None and (seconds := [each for each in due if each is not None]):
            self._timer = self._loop.call_later(min(seconds), self._close_old)

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        self._shelf.close()
        self._async_shelf.close()

    def make_room(self) -> bool:
        """Others need a connection, and the server gives no more: close an idle one; False where none is."""
        return self._shelf.close_one() or self._async_shelf.close_one()

    def broke(self, kept: Kept[Any], error: BaseException) -> bool:
        """`kept` failed before its job began. Whether that was because the last job's connection is dead: then the others
        like it are no better, and a new one may be."""
        shelf: Shelf[Any] = self._shelf if isinstance(kept.link, Link) else self._async_shelf
        worn_out = kept.used and kept.link.closed and isinstance(error, psycopg.OperationalError)
        if worn_out:
            shelf.close_idle()
        shelf.lost(kept)
        return worn_out
