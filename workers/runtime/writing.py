"""The task that writes outcomes, from its start to its end. What can't be written by then is left to a rescue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import anyio

from .completer import Completer

__all__ = ["Writing"]

logger = logging.getLogger("workers")

#: After the grace, seconds for outcomes to be written; and for the driver to end the statement that could not.
_WRITE_SECONDS, _BREAK_OFF_SECONDS = 5.0, 1.0
#: Seconds between two looks whether everything is written.
_LOOK_EVERY = 0.01
_UNWRITTEN = "outcomes can't be written before the end: those jobs will run again"


class Writing:
    """Runs the completer; `ended` is called with its task. Event loop only."""

    def __init__(self, completer: Completer, ended: Callable[[asyncio.Task[None]], None]) -> None:
        self._completer = completer
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._last: anyio.CancelScope | None = None

    def start(self) -> None:
        """Write from now on."""
        self._task = asyncio.create_task(self._completer.run(), name="workers-completer")
        self._task.add_done_callback(self._ended)

    @property
    def is_ending(self) -> bool:
        """Whether the end of the writing is being waited for."""
        return self._last is not None

    def hurry(self, grace: float) -> None:
        """Let the end come `grace` seconds, and those for writing, from now, if it would come later."""
        if (last := self._last) is not None:
            # not anyio's clock: it may know of no loop where no task runs, as in the callback of a signal
            end = asyncio.get_running_loop().time() + grace + _WRITE_SECONDS
            last.deadline = min(last.deadline, end)

    async def flush(self) -> None:
        """Wait until everything is written that is there to be written, though more may come; not for long."""
        with anyio.move_on_after(_WRITE_SECONDS):
            while not self._completer.idle:  # noqa: ASYNC110 - once in the life of a runner
                await asyncio.sleep(_LOOK_EVERY)
        if not self._completer.idle:
            logger.error(_UNWRITTEN)

    async def end(self, grace: Callable[[], float]) -> None:
        """Write what is to be written, for the grace and a while longer. Cancelled, it can be called again."""
        self._completer.close()
        while self._task is not None:
            with anyio.move_on_after(grace() + _WRITE_SECONDS) as self._last:
                await asyncio.wait([self._task])
            if not self._task.done():
                logger.error(_UNWRITTEN)
                await self._completer.break_off(self._task, _BREAK_OFF_SECONDS)
            elif self._task.cancelled():  # like every task of a loop that closes
                self.start()
                continue
            break
