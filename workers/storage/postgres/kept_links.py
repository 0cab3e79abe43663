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
from .shelf import Kept, Shelf, close

__all__ = ["KeptLinks"]

logger = logging.getLogger("workers")

#: A server that is well answers a reset at once.
_RESET_SECONDS = 2.0
#: How long a job waits for the connection of another one, where the server gives no more.
_WAIT_SECONDS = 5.0
#: What the server takes to notice that a connection is closed.
_ROOM_SECONDS = 0.02


class KeptLinks:
    """Of both kinds; one can't stand in for the other, but makes room for it. Usable from threads."""

    def __init__(
        self, connect: Callable[[], Link], connect_async: Callable[[], Awaitable[AsyncLink]]
    ) -> None:
        self._connect = connect
        self._connect_async = connect_async
        self._shelf: Shelf[Link] = Shelf()
        self._async_shelf: Shelf[AsyncLink] = Shelf()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Close connections that were idle for long, from now on. On the event loop."""
        self._loop = asyncio.get_running_loop()

    async def take_async(self) -> Kept[AsyncLink]:
        """An idle connection, a new one, or that of another job, as soon as it is free."""
        shelf, deadline = self._async_shelf, time.monotonic() + _WAIT_SECONDS
        refusal = psycopg.OperationalError("no connection came free")
        while True:
            if kept := shelf.take():
                return kept
            if shelf.is_worth_asking:
                try:
                    return await self._make_async()
                except psycopg.OperationalError as error:
                    refusal = error
                    if self._shelf.make_room():
                        shelf.ask_again()
                        await asyncio.sleep(_ROOM_SECONDS)
                        continue
            left = deadline - time.monotonic()
            if left <= 0 or not shelf.in_use:
                raise refusal
            if kept := await shelf.wait_async(left):
                return kept

    def take(self) -> Kept[Link]:
        """The same on a synchronous connection."""
        shelf, deadline = self._shelf, time.monotonic() + _WAIT_SECONDS
        refusal = psycopg.OperationalError("no connection came free")
        while True:
            if kept := shelf.take():
                return kept
            if shelf.is_worth_asking:
                try:
                    return self._make()
                except psycopg.OperationalError as error:
                    refusal = error
                    if self._async_shelf.make_room():
                        shelf.ask_again()
                        time.sleep(_ROOM_SECONDS)
                        continue
            left = deadline - time.monotonic()
            if left <= 0 or not shelf.in_use:
                raise refusal
            if kept := shelf.wait(left):
                return kept

    async def _make_async(self) -> Kept[AsyncLink]:
        self._async_shelf.making()
        link = None
        try:
            link = await self._connect_async()
            link.patience = SETUP_SECONDS
            kept = Kept(link, await Baseline.of_async(link))
        except BaseException as error:
            if link is not None:
                close(link)
            self._async_shelf.failed(error)
            raise
        self._async_shelf.made()
        return kept

    def _make(self) -> Kept[Link]:
        self._shelf.making()
        link = None
        try:
            link = self._connect()
            link.patience = SETUP_SECONDS
            kept = Kept(link, Baseline.of(link))
        except BaseException as error:
            if link is not None:
                close(link)
            self._shelf.failed(error)
            raise
        self._shelf.made()
        return kept

    async def give_back_async(self, kept: Kept[AsyncLink], *, dirty: bool) -> None:
        """Keep the connection for the next job, if it is what it was before this one."""
        link = kept.link
        clean = link.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            if clean and dirty:
                clean, link.patience = False, _RESET_SECONDS
                await kept.baseline.restore_async(link)
                if link.configure is not None:
                    await link.configure(link)
                clean = True
        except psycopg.Error as error:
            logger.debug("a connection can't be used again: %s", error)
        finally:
            self._end(kept, self._async_shelf, clean=clean and not self._shelf.is_hungry)

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
            self._end(kept, self._shelf, clean=clean and not self._async_shelf.is_hungry)

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

    def broke(self, kept: Kept[Any], error: BaseException) -> bool:
        """`kept` failed before its job began. Whether that was because the last job's connection is dead: then the others
        like it are no better, and a new one may be."""
        shelf: Shelf[Any] = self._shelf if isinstance(kept.link, Link) else self._async_shelf
        worn_out = kept.used and kept.link.closed and isinstance(error, psycopg.OperationalError)
        if worn_out:
            shelf.close_idle()
        shelf.lost(kept)
        return worn_out
