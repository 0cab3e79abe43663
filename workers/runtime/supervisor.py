"""The tree of one runner, and the order in which it is taken down.

    claimers, listener, watch   cancelled first
    workers                     finish what they run; their jobs are stopped when the grace is over
    completer                   ends when everything is written
    session thread              ends after all of them

Workers are plain tasks rather than a task group's: a group can't be left while a job refuses to end, and a runner must be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

import anyio

from ..config import QueueConfig, RunnerConfig
from ..errors import RunnerError
from ..lifecycle import Interrupted
from ..registry import Registry
from ..storage.base import MaintenanceRequest, Storage
from .claimer import Claimer
from .completer import Completer
from .empty import EmptyWatch
from .executor import Executor, ThreadJobs
from .gate import Gate
from .ledger import Ledger
from .listening import Listening
from .reports import Reports
from .session import SessionKeeper, StallHandler
from .work_queue import WorkQueue
from .worker import Worker

__all__ = ["Supervisor"]

logger = logging.getLogger("workers")

#: After the grace, seconds for stopped jobs to end, and again for outcomes to be written.
_LAST_SECONDS = 5.0


class Supervisor:
    """Runs one session from start to end. Made on the event loop that it runs on."""

    def __init__(
        self,
        storage: Storage,
        registry: Registry,
        queues: Mapping[str, QueueConfig],
        context: Any,
        config: RunnerConfig,
        *,
        until_empty: bool = False,
        on_stall: StallHandler | None = None,
    ) -> None:
        self._storage = storage
        self._registry = registry
        self._config = config
        self._until_empty = until_empty
        self.ledger = Ledger()
        self.completer = Completer(storage, self.ledger)
        self._gate = Gate()
        self._queues = {name: WorkQueue(name, queue) for name, queue in queues.items()}
        job_types = tuple(sorted(job_type.name for job_type in registry))
        self._claimers = {
            name: Claimer(
                storage, queue, self.ledger, self.completer, self._gate, job_types, config.max_batch
            )
            for name, queue in self._queues.items()
        }
        self._context, self._base = context, copy_context()
        self._threads: ThreadJobs = set()
        self._reports = Reports(
            storage,
            self.ledger,
            self.completer,
            self._gate,
            self._queues,
            self._claimers,
            self._threads,
            self._die,
            on_stall,
        )
        self._listening = Listening(storage.listener, self._reports.wake, self._listener_address)
        self._keeper = SessionKeeper(
            storage.control(),
            self.ledger,
            self._reports,
            MaintenanceRequest(
                lease=config.lease,
                declared={job_type.name: job_type.queue for job_type in registry},
                queues=tuple(self._queues),
            ),
            name=config.name,
            stall_limit=config.loop_stall_limit,
        )
        self._reports.probed_listener = self._listening.probed
        self._workers: set[asyncio.Task[None]] = set()
        self._shutdown = asyncio.Event()
        self._grace = config.grace
        self._grace_scope: anyio.CancelScope | None = None
        self._failure: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None
        loop = asyncio.get_running_loop()
        #: Done when jobs can be claimed, or with the error that kept the runner from it.
        self.ready: asyncio.Future[None] = loop.create_future()
        #: Done when the runner has ended, with the ids of the jobs that would not.
        self.ended: asyncio.Future[list[int]] = loop.create_future()

    def shutdown(self, grace: float | None = None) -> None:
        """Stop claiming and let running jobs finish for `grace` seconds; a second call with a shorter one hurries."""
        if grace is not None:
            self._grace = grace
            if self._grace_scope is not None:
                self._grace_scope.deadline = min(
                    self._grace_scope.deadline, anyio.current_time() + grace
                )
        self._shutdown.set()

    async def run(self) -> None:
        """Live. Sets `ready` and `ended`, and raises nothing that they do not say."""
        self._task = asyncio.current_task()
        try:
            await self._storage.open()
            try:
                await self._in_session()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._storage.close()
            if self._failure is not None:
                raise RunnerError(f"the runner died: {self._failure!r}") from self._failure
        except BaseException as error:
            self._tell(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._tell(None)

    def _tell(self, error: BaseException | None) -> None:
        """Resolve what others wait for. An error that nobody waits for is in the log."""
        if error is not None and self.ready.done() and isinstance(error, Exception):
            logger.critical("the runner died", exc_info=error)
        for future in (self.ready, self.ended):
            if future.done():
                continue
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # asked for: not having awaited it is no offence
            elif future is self.ended:
                self.ended.set_result([])
            else:
                future.cancel()

    # ---------------------------------------------------------------------------------------------------------- the tree

    async def _in_session(self) -> None:
        self._keeper.start()
        try:
            self.ledger.begin_session(await asyncio.wrap_future(self._keeper.started))
        except asyncio.CancelledError:
            self._keeper.stop()
            raise
        self._gate.open()
        writer = asyncio.create_task(self.completer.run(), name="workers-completer")
        writer.add_done_callback(self._task_ended)
        try:
            await self._work()
        finally:
            for queue in self._queues.values():
                queue.close()
            if not self._running():
                self.completer.close()
                with anyio.CancelScope(shield=True):
                    await self._end_writing(writer)
                    self._keeper.stop()
                    await asyncio.wrap_future(self._keeper.ended)
            # else: cancelled while jobs would not end. The thread keeps their claims until the process is gone

    async def _end_writing(self, writer: asyncio.Task[None]) -> None:
        done, _ = await asyncio.wait([writer], timeout=self._grace + _LAST_SECONDS)
        if not done:
            writer.cancel()
            await asyncio.wait([writer])
            logger.error(
                "outcomes could not be written before the end; those jobs will be run again"
            )

    async def _work(self) -> None:
        """Claim and run until shutdown, then let the workers finish."""
        for queue in self._queues.values():
            executor = Executor(
                self._storage,
                self._context,
                self._base,
                queue.config.num_workers,
                self._threads,
                self._is_closing,
            )
            for number in range(1, queue.config.num_workers + 1):
                worker = Worker(
                    queue, executor, self._registry, self.ledger, self.completer, self._gate
                )
                task = asyncio.create_task(worker.run(), name=f"worker-{queue.name}-{number}")
                self._workers.add(task)
                task.add_done_callback(self._task_ended)
        try:
            await self._claim_until_shutdown()
        except asyncio.CancelledError:
            # whoever cancels this task wants out: jobs are stopped now, and go back uncounted
            self._grace = 0.0
            raise
        finally:
            for name, queue in self._queues.items():
                self._claimers[name].give_back(queue.take_back())
                queue.close()
            with anyio.CancelScope(shield=True):
                await self._finish()
        # a job that would not end keeps its claim, and this task its place, until it does
        while self._workers:
            await asyncio.wait(self._workers)

    async def _claim_until_shutdown(self) -> None:
        async with anyio.create_task_group() as group:
            for name, claimer in self._claimers.items():
                group.start_soon(claimer.run, name=f"claimer-{name}")
            if self._config.listen:
                group.start_soon(self._listening.run, self.ledger.session, name="listening")
            if self._until_empty:
                watch = EmptyWatch(self._keeper, self.ledger, self.completer, self._claimers)
                group.start_soon(watch.run, self.shutdown, name="watch-for-empty")
            if not self.ready.done():
                self.ready.set_result(None)
            session, queues = self.ledger.session, sorted(self._queues)
            logger.info(
                "runner started: session %d, queues %s", session, queues, extra={"session": session}
            )
            await self._shutdown.wait()
            group.cancel_scope.cancel()

    async def _finish(self) -> None:
        """Wait for running jobs; stop those that are not done when the grace is over."""
        if not await self._workers_end_within(self._grace):
            stopped = self._running()
            logger.warning(
                "the grace is over: stopping %d jobs", len(stopped), extra={"job_ids": stopped}
            )
            for queue in self._queues.values():
                for attempt in list(queue.running):
                    attempt.stop(Interrupted("shutdown"))
            if not await self._workers_end_within(_LAST_SECONDS):
                unfinished = self._running()
                logger.error(
                    "jobs that would not stop: %s", unfinished, extra={"job_ids": unfinished}
                )
                if not self.ended.done():
                    self.ended.set_result(unfinished)

    async def _workers_end_within(self, seconds: float) -> bool:
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as self._grace_scope:
            while self._workers:
                await asyncio.wait(self._workers)
        return not self._workers

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._die(error)

    def _die(self, error: BaseException) -> None:
        """Something that the runner can't be without has failed: shut down, and say so at the end."""
        self._failure = self._failure or error
        self.shutdown()

    def _running(self) -> list[int]:
        return sorted(
            attempt.job.id for queue in self._queues.values() for attempt in queue.running
        )

    def _is_closing(self) -> bool:
        return self._task is None or self._task.cancelling() > 0

    def _listener_address(self, address: str | None) -> None:
        self._keeper.listener_address = address
