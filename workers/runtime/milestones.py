"""What others may wait for in the life of a runner: that it is ready, and that it has ended."""

from __future__ import annotations

import asyncio
import logging

from ..errors import RunnerError, WorkersError

__all__ = ["Milestones"]

logger = logging.getLogger("workers")

#: A loop that closes cancels every task, and is closed within so many seconds.
_CLOSES_WITHIN = 1.0


class Milestones:
    """Two futures, each of which is resolved in any case."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        #: Done when jobs can be claimed, or with the error that kept the runner from it.
        self.ready: asyncio.Future[None] = loop.create_future()
        #: Done when the runner has ended, with the ids of the jobs that would not.
        self.ended: asyncio.Future[list[int]] = loop.create_future()

    def is_ready(self) -> None:
        """Jobs can be claimed."""
        if not self.ready.done():
            self.ready.set_result(None)

    def left_behind(self, job_ids: list[int]) -> None:
        """The grace is over, and these jobs would not stop: nobody has to wait for them."""
        if not self.ended.done():
            self.ended.set_result(job_ids)

    def over(self, error: BaseException | None, *, known: bool) -> None:
        """The runner has ended, with `error`; unless it is `known`, it goes to the log: maybe nobody waits.

        A cancellation that is not `known` comes from a loop that closes; or from somebody who cancels what is not his.
        """
        if isinstance(error, Exception):
            if not known:
                what = "did not end in order" if self.ready.done() else "can't start"
                # our own errors say all there is to say
                info = None if isinstance(error, WorkersError) else error
                logger.critical("the runner %s: %s", what, error, exc_info=info)
            self._fail(error)
        elif error is None:
            self.left_behind([])
            self._fail(RunnerError("the runner was shut down before it was ready"))
        else:
            self.ready.cancel()
            if known:
                self.left_behind([])
            else:
                asyncio.get_running_loop().call_later(_CLOSES_WITHIN, self._vanished)

    def _vanished(self) -> None:
        """The loop goes on, and the runner does not."""
        if not self.ended.done():
            error = RunnerError("the runner's task was cancelled: it works no more jobs")
            logger.critical("%s; does something cancel all tasks of this event loop?", error)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # asked for: not having awaited it is no offence
