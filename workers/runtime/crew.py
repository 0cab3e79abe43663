"""The workers of all queues: started together, waited for at the end.

They are plain tasks rather than a task group's: a group can't be left while a job refuses to end, and a runner must be.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping

import anyio

from ..lifecycle import Interrupted
from .work_queue import WorkQueue
from .worker import Worker

__all__ = ["LAST_SECONDS", "Crew"]

logger = logging.getLogger("workers")

#: After the grace, seconds for stopped jobs to end. One that swallowed that is asked again for the last of them.
LAST_SECONDS = 5.0
_SHARES = (0.8, 0.2)


class Crew:
    """Starts `num_workers` for each queue; `died` is told of the error that ended one."""

    def __init__(
        self,
        queues: Mapping[str, WorkQueue],
        make_worker: Callable[[WorkQueue], Worker],
        died: Callable[[BaseException], None],
    ) -> None:
        self._queues = queues
        self._make_worker = make_worker
        self._died = died
        self._tasks: set[asyncio.Task[None]] = set()
        self._grace: anyio.CancelScope | None = None
        self._hurried = False
        self._most_grace = math.inf
        self._finishing: asyncio.Task[None] | None = None
        self._told = False
        self._tell: Callable[[list[int]], Awaitable[None]] | None = None

    def start(self) -> None:
        """Start all workers."""
        for queue in self._queues.values():
            for number in range(1, queue.config.num_workers + 1):
                self._start(self._make_worker(queue), queue, f"worker-{queue.name}-{number}")

    def _start(self, worker: Worker, queue: WorkQueue, name: str) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._died(error)
            elif not queue.closed:  # a job has made its task unfit for others
                self._start(worker, queue, name)

        task = asyncio.create_task(worker.run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(ended)

    def running(self) -> list[int]:
        """The ids of the jobs that run."""
        return sorted(
            attempt.job.id for queue in self._queues.values() for attempt in queue.running
        )

    def _named(self) -> list[str]:
        running = [attempt.job for queue in self._queues.values() for attempt in queue.running]
        return [f"{job.id} ({job.job_type})" for job in sorted(running, key=lambda job: job.id)]

    def start_finishing(self, grace: float, tell: Callable[[list[int]], Awaitable[None]]) -> None:
        """Wait for running jobs, and stop those that are not done when the grace is over. `finished` waits for the end.

        Those that would not end are told, and keep their claims, and the caller, until they do.
        """
        self._tell = tell
        self._finishing = asyncio.create_task(self._finish(grace), name="workers-finish")

    async def finished(self) -> None:
        """Wait until all workers have ended."""
        while self._finishing is None or self._finishing.cancelled() or not self._finishing.done():
            # a loop that closes cancels it
            if self._finishing is None or self._finishing.cancelled():
                self._finishing = asyncio.create_task(self._finish(0.0), name="workers-finish")
            await asyncio.wait([self._finishing])
        self._finishing.result()

    async def _finish(self, grace: float) -> None:
        if self._told:  # it was cancelled after that, by a loop that closes
            self._stop_running()
            await self._ended()
            return
        if running := self.running():
            text = "waiting up to %g s for %d running jobs"
            logger.info(text, grace, len(running), extra={"job_ids": running})
        # it may have been hurried before this task had its first turn
        with anyio.move_on_after(min(grace, self._most_grace)) as self._grace:
            await self._ended()
        self._grace = None
        if not self._tasks:
            return
        stopped = self.running()
        why = "" if self._hurried else f"the grace of {grace:g} s is over: "
        logger.warning("%sstopping %d jobs", why, len(stopped), extra={"job_ids": stopped})
        for share in _SHARES:
            self._stop_running()
            with anyio.move_on_after(share * LAST_SECONDS):
                await self._ended()
        if self._tasks:
            unfinished = self.running()
            logger.error(
                "jobs that would not stop: %s; they keep their claims until this process has ended",
                ", ".join(self._named()),
                extra={"job_ids": unfinished},
            )
            self._told = True
            if self._tell is not None:
                await self._tell(unfinished)
            await self._ended()

    def _stop_running(self) -> None:
        for queue in self._queues.values():
            for attempt in list(queue.running):
                attempt.stop(Interrupted("shutdown"))

    def hurry(self, grace: float) -> None:
        """Let the grace end in `grace` seconds, if it would last longer."""
        self._hurried = True
        self._most_grace = min(self._most_grace, grace)
        if self._grace is not None:
            # not anyio's: it may know of no loop where no task runs, as in the callback of a signal
            now = asyncio.get_running_loop().time()
            self._grace.deadline = min(self._grace.deadline, now + grace)

    async def _ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
