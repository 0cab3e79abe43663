"""Runners that run: in the caller's event loop, or in a thread of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from types import TracebackType
from typing import Self

import anyio

from .config import seconds
from .runtime.supervisor import Supervisor

__all__ = ["RunnerHandle", "RunnerThread"]

logger = logging.getLogger("workers")

_Seconds = float | timedelta

#: The loop itself keeps only weak references to its tasks, and nobody has to keep a handle.
_running: set[asyncio.Task[None]] = set()


class RunnerHandle:
    """A runner that was started. Also an async context manager: ready when entered, shut down when left."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.shutting_down = False
        self._task = asyncio.create_task(supervisor.run(), name="workers-runner")
        _running.add(self._task)
        self._task.add_done_callback(_running.discard)

    def __repr__(self) -> str:
        return f"<RunnerHandle session {self.session or 'not open yet'}, {self._state()}>"

    def _state(self) -> str:
        if self._task.done():
            return "ended"
        return "shutting down" if self.shutting_down else "running"

    @property
    def session(self) -> int:
        """The id of the runner's session; 0 before it is ready."""
        return self._supervisor.ledger.session

    async def ready(self) -> None:
        """Wait until jobs can be claimed. Raises what kept the runner from starting."""
        await asyncio.shield(self._supervisor.milestones.ready)

    def shutdown(self, *, grace: _Seconds | None = None) -> None:
        """Stop claiming and let running jobs finish; after `grace` seconds (the runner's own setting) they are stopped.

        Harmless when repeated; a later call with a shorter grace hurries. Raises ConfigurationError for a bad `grace`.
        """
        allowed = None if grace is None else seconds("grace", grace)
        self.shutting_down = True
        self._supervisor.shutdown(allowed)

    async def wait_for_shutdown(self) -> list[int]:
        """Wait until the runner has ended. Returns the ids of jobs that would not end within the grace.

        Raises RunnerError if it died, and what kept it from starting.
        """
        unfinished = await asyncio.shield(self._supervisor.milestones.ended)
        if not unfinished:
            await asyncio.wait([self._task])
        return unfinished

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except asyncio.CancelledError:  # __aexit__ will not be called
            self.shutdown()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        # a block that is cancelled is left as late as one that is not: what comes after it may close what jobs use
        with anyio.CancelScope(shield=True):
            await self.wait_for_shutdown()


class RunnerThread:
    """A runner in a thread of its own, for synchronous programs. Also a context manager."""

    def __init__(self, start: Callable[[], RunnerHandle]) -> None:
        self._handle: RunnerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        started: Future[None] = Future()
        self._ended: Future[list[int]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(start, started), name="workers-runner", daemon=True
        )
        self._thread.start()
        started.result()

    def shutdown(self, *, grace: _Seconds | None = None) -> None:
        """See RunnerHandle.shutdown; callable from any thread. Raises ConfigurationError for a bad `grace`."""
        allowed = (
            None if grace is None else seconds("grace", grace)
        )  # over there nobody would hear of it
        handle, loop = self._handle, self._loop
        if handle is not None and loop is not None and not self._ended.done():
            _quietly(lambda: loop.call_soon_threadsafe(lambda: handle.shutdown(grace=allowed)))

    def wait_for_shutdown(self, timeout: float | None = None) -> list[int]:
        """Wait at most `timeout` seconds until the runner has ended; see RunnerHandle.wait_for_shutdown.

        Raises TimeoutError.
        """
        return self._ended.result(timeout)

    def __repr__(self) -> str:
        return f"<RunnerThread of {self._handle!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.wait_for_shutdown()

    def _run(self, start: Callable[[], RunnerHandle], started: Future[None]) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._handle = start()
            await self._handle.ready()
            started.set_result(None)
            # said before the loop ends, which waits for jobs that would not
            self._ended.set_result(await self._handle.wait_for_shutdown())

        try:
            asyncio.run(main())
        except BaseException as error:
            for future in (started, self._ended):
                if not future.done():
                    future.set_exception(error)


def _quietly(call: Callable[[], object]) -> None:
    """Call; an event loop that is closed has nothing left to be told."""
    try:
        call()
    except RuntimeError:
        logger.debug("the runner's loop is closed already")
