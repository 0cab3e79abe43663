"""The task that writes outcomes, from its start to its end. What can't be written by then is left to a rescue."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

import anyio

from .completer import Completer

__all__ = ["Writing"]

logger = logging.getLogger("workers")

#: After the grace, seconds for outcomes to be written; and for the driver to end the statement that could not.
_WRITE_SECONDS, _BREAK_OFF_SECONDS = 5.0, 1.0
#: Seconds between two looks whether everything is written.
_LOOK_EVERY = 0.01
#: The same where a job would not end, and whoever waits may end the process then; and at least, in a hurry.
_FLUSH_SECONDS, _LEAST_SECONDS = 3.0, 0.5


class Writing:
    """Runs the completer; `ended` is called with its task. Event loop only."""

    def __init__(self, completer: Completer, ended: Callable[[asyncio.Task[None]], None]) -> None:
        self._completer = completer
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._last: anyio.CancelScope | None = None
        self._hurried_to = math.inf

    def start(self) -> None:
        """Write from now on."""
        self._task = asyncio.create_task(self._completer.run(), name="workers-completer")
        self._task.add_done_callback(self._ended)

    def hurry(self, grace: float) -> None:
        """Let the end come `grace` seconds, and those for writing, from now, if it would come later."""
        # not anyio's clock: it may know of no loop where no task runs, as in the callback of a signal
        end = asyncio.get_running_loop().time() + grace + _WRITE_SECONDS
        self._hurried_to = min(self._hurried_to, end)
        if (last := self._last) is not None:
            last.deadline = min(last.deadline, end)

    async def flush(self) -> None:
        """Wait until everything is written that is there to be written, though more may come; not for long."""
        now = asyncio.get_running_loop().time()
        seconds = max(_LEAST_SECONDS, min(_FLUSH_SECONDS, self._hurried_to - now))
        with anyio.move_on_after(seconds):
            while not self._completer.idle:  # noqa: ASYNC110 - once in the life of a runner
                await asyncio.sleep(_LOOK_EVERY)
        if not self._completer.idle:
            logger.error(
                "outcomes can't be written: if this process ends now, those jobs will run again"
            )

    async def end(self, grace: Callable[[], float]) -> None:
        """Write what is to be written, for the grace and a while longer. Cancelled, it can be called again."""
        self._completer.close()
        while self._task is not None:
            with anyio.move_on_after(grace() + _WRITE_SECONDS) as self._last:
                await asyncio.wait([self._task])
            if not self._task.done():
                logger.error("outcomes can't be written before the end: those jobs will run again")
                await self._completer.break_off(self._task, _BREAK_OFF_SECONDS)
            elif self._task.cancelled():  # like every task of a loop that closes
                self.start()
                continue
            break
