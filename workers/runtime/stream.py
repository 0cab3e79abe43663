"""One kind of write. What comes while a statement is on its way is the next batch; one that the store refuses is split until
the bad item is alone."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

import anyio

from ..errors import StorageError, StorageUnavailableError

__all__ = ["Stream"]

logger = logging.getLogger("workers")

#: Items in one statement.
MAX_WRITE = 1000
_RETRY_LEAST, RETRY_MOST = 0.05, 2.0
#: Seconds until what was put aside is tried again; twice as long each time that nothing else comes of it.
_ASIDE_LEAST = 0.25

W = TypeVar("W")


class Stream(Generic[W]):
    """A buffer, and the loop that empties it."""

    def __init__(
        self,
        write: Callable[[list[W], bool], Coroutine[Any, Any, None]],
        refused: Callable[[W, StorageError], Coroutine[Any, Any, None]],
    ) -> None:
        self._write: Callable[[list[W], bool], Coroutine[Any, Any, None]] = write
        self._refused: Callable[[W, StorageError], Coroutine[Any, Any, None]] = refused
        self.buffer: list[W] = []
        self.event = asyncio.Event()
        self.closed = False
        self.busy = False
        self._poked = False
        self._uncertain = False  # the next batch may have been written already
        self._aside: list[W] = []
        self._aside_until = 0.0
        self._pause = _ASIDE_LEAST

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be written."""
        return not (self.buffer or self.busy or self._aside)

    def add(self, item: W) -> None:
        self.buffer.append(item)
        self.event.set()

    def put_aside(self, items: Sequence[W]) -> None:
        """These have to wait for somebody: they are tried again, now and then, and hold up nothing else."""
        if not items:
            self._pause = _ASIDE_LEAST
            return
        if not self._aside:
            self._aside_until = time.monotonic() + self._pause
            self._pause = min(RETRY_MOST, self._pause * 2)
        self._aside += items

    def poke(self) -> None:
        """Write, even if the batch is empty."""
        self._poked = True
        self.event.set()

    async def run(self) -> None:
        """Write until closed. Cancelled, it can be run again."""
        while True:
            self.event.clear()
            self._take_back()
            while self.buffer or self._poked:
                await self._write_next()
                self._take_back()
            if self._aside:
                with anyio.move_on_after(self._aside_until - time.monotonic()):
                    await self.event.wait()
            elif self.closed:
                return
            else:
                await self.event.wait()

    def _take_back(self) -> None:
        """Try again what was put aside, when it is time."""
        if self._aside and time.monotonic() >= self._aside_until:
            self.buffer, self._aside = self._aside + self.buffer, []

    async def _write_next(self) -> None:
        batch, self.buffer = self.buffer[:MAX_WRITE], self.buffer[MAX_WRITE:]
        self._poked, self.busy = False, True
        try:
            await self._persist(batch, self._uncertain)
            self._uncertain = False
        except BaseException:
            self._aside = [item for item in self._aside if item not in batch]
            self.buffer[:0] = batch
            self._uncertain = True
            raise
        finally:
            self.busy = False

    async def _persist(self, batch: list[W], uncertain: bool = False) -> None:
        """Write `batch`, however often it takes. `uncertain`: it may have been written already."""
        delay = _RETRY_LEAST
        while True:
            try:
                await self._write(batch, uncertain)
                return
            except StorageUnavailableError as error:
                if not uncertain:
                    logger.warning(
                        "outcomes of %d jobs can't be written now: %s", len(batch), error
                    )
                uncertain = True
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(RETRY_MOST, delay * 2)
            except StorageError as error:
                if len(batch) > 1:
                    for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                        # of several kinds, those before the refused one are written
                        await self._persist(half, uncertain=True)
                    return
                await self._refused(batch[0], error)
                return
