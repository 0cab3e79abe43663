"""One kind of write. What comes while a statement is on its way is the next batch; one that the store refuses is split until
the bad item is alone."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

import anyio

from ..errors import StorageError, StorageUnavailableError, StorageUnusableError

__all__ = ["Stream"]

logger = logging.getLogger("workers")

#: Items in one statement.
MAX_WRITE = 1000
#: A write follows on another after this many seconds, or when so many items wait: each one costs the loop as much as twenty
#: jobs, and the server a commit.
PACE, WORTH = 0.005, 100
_RETRY_LEAST, RETRY_MOST = 0.05, 2.0
#: Seconds until what was put aside is tried again; twice as long each time that nothing else comes of it.
_ASIDE_LEAST = 0.25

W = TypeVar("W")


class Stream(Generic[W]):
    """A buffer, and the loop that empties it."""

    def __init__(
        self,
        write: Callable[[list[W], bool], Coroutine[Any, Any, None]],
        refused: Callable[[W, StorageError], Coroutine[Any, Any, W | None]],
    ) -> None:
        """`write` writes a batch. `refused` deals with a bad item, and returns what is to be tried instead, in a while."""
        self._write: Callable[[list[W], bool], Coroutine[Any, Any, None]] = write
        self._refused: Callable[[W, StorageError], Coroutine[Any, Any, W | None]] = refused
        self.buffer: list[W] = []
        self.event = asyncio.Event()
        self.closed = False
        self.busy = False
        self._poked = False
        self._uncertain = False  # the next batch may have been written already
        self._aside: list[W] = []
        self._aside_uncertain = False
        self._aside_until = 0.0
        self._pause = _ASIDE_LEAST
        self._written_at = -math.inf
        self._told: set[str] = set()  # why items are put aside that can't be written
        self._task: asyncio.Task[Any] | None = None

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be written."""
        return not (self.buffer or self.busy or self._aside)

    def __len__(self) -> int:
        """How many items wait to be written."""
        return len(self.buffer) + len(self._aside)

    def add(self, item: W) -> None:
        self.buffer.append(item)
        if len(self.buffer) == 1:  # else `run` knows
            self.event.set()

    def put_aside(self, items: Sequence[W], uncertain: bool) -> None:
        """These have to wait for somebody: they are tried again, now and then, and hold up nothing else."""
        if not items:
            return
        self._aside_uncertain = self._aside_uncertain or uncertain
        if not self._aside:
            self._aside_until = time.monotonic() + self._pause
            self._pause = min(RETRY_MOST, self._pause * 2)
        self._aside += items
        self.event.set()  # they may come from another stream

    def poke(self) -> None:
        """Write, even if the batch is empty."""
        self._poked = True
        self.event.set()

    async def run(self) -> None:
        """Write until closed. Cancelled, it can be run again."""
        self._task = asyncio.current_task()
        while True:
            self.event.clear()
            while self.buffer or self._poked or self._aside_is_due():
                await self._gather()
                await self._write_next()
            if self._aside:
                with anyio.move_on_after(self._aside_until - time.monotonic()):
                    await self.event.wait()
            elif self.closed:
                return
            else:
                await self.event.wait()

    def break_off(self) -> None:
        """Cancel `run`, and the statement that is under way. Once: a scope would do so again and again, and the driver
        could not tell the server."""
        if self._task is not None:
            self._task.cancel()

    async def _gather(self) -> None:
        pause = self._written_at + PACE - time.monotonic()
        if pause > 0 and len(self.buffer) < WORTH and not (self._poked or self.closed):
            await asyncio.sleep(pause)

    def _aside_is_due(self) -> bool:
        return bool(self._aside) and time.monotonic() >= self._aside_until

    def _next_batch(self) -> tuple[list[W], bool]:
        """What to write, and whether it may have been written already."""
        # what was put aside comes by itself: what it still has to wait for is not for others to wait for
        if self._aside_is_due():
            batch, uncertain = self._aside, self._aside_uncertain
            self._aside, self._aside_uncertain = [], False
        else:
            batch, uncertain = self.buffer[:MAX_WRITE], self._uncertain
            self.buffer, self._uncertain = self.buffer[MAX_WRITE:], False
        return batch, uncertain

    async def _write_next(self) -> None:
        batch, uncertain = self._next_batch()
        self._poked, self.busy = False, True
        try:
            await self._persist(batch, uncertain)
            if not self._aside:
                self._pause = _ASIDE_LEAST
                self._told.clear()
        except BaseException:
            self._aside = [item for item in self._aside if item not in batch]
            self.buffer[:0] = batch
            self._uncertain = True
            raise
        finally:
            self.busy = False
            self._written_at = time.monotonic()

    async def _unusable(self, batch: list[W], error: StorageError) -> None:
        """It was not refused for what the items say, and is tried again until it is mended. One of them alone shows whether
        others, of another kind or for other rows, can be written."""
        rest = batch.copy()
        chosen = rest.pop(random.randrange(len(rest)))
        if rest:
            try:
                with anyio.CancelScope(shield=True):
                    await self._write([chosen], True)
            except StorageError:
                pass
            else:
                for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
                    if half:
                        await self._persist(half, uncertain=True)
                return
        if str(error) not in self._told:
            self._told.add(str(error))
            text = "outcomes of %d jobs can't be written until somebody mends this: %s"
            logger.error(text, len(batch), error)
        self.put_aside(batch, uncertain=True)

    async def _persist(self, batch: list[W], uncertain: bool = False) -> None:
        """Write `batch`, however often it takes. `uncertain`: it may have been written already."""
        delay = _RETRY_LEAST
        while True:
            try:
                with anyio.CancelScope(shield=True):
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
                if batch and isinstance(error, StorageUnusableError):
                    await self._unusable(batch, error)
                    return
                if len(batch) > 1:
                    for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                        # of several kinds, those before the refused one are written
                        await self._persist(half, uncertain=True)
                    return
                # it came for what else is to be written, which the next one takes along
                if not batch:
                    logger.warning("claims that are over can't be forgotten yet: %s", error)
                    return
                if (again := await self._refused(batch[0], error)) is not None:
                    self.put_aside([again], uncertain)
                return
