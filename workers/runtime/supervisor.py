"""The tree of one runner, and the order in which it is taken down.

    claimers, listener, watch   cancelled first
    workers                     finish what they run; their jobs are stopped when the grace is over
    completer                   ends when everything is written
    session thread              ends after all of them

A loop that closes cancels every task at once. Then running jobs are stopped and go back uncounted; the order stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

import anyio

from .. import telemetry
from ..config import QueueConfig, RunnerConfig
from ..errors import RunnerError
from ..registry import Registry
from ..storage.base import MaintenanceRequest, Storage
from .claimer import Claimer, fragile_types
from .completer import Completer
from .crew import Crew
from .driving import Deferred, insist
from .empty import EmptyWatch
from .executor import Executor, ThreadJobs
from .gate import Gate
from .ledger import Ledger
from .listening import Listening
from .milestones import Milestones
from .reports import Reports
from .session import SessionKeeper, StallHandler
from .work_queue import WorkQueue
from .worker import Worker
from .writing import Writing

__all__ = ["Supervisor"]

logger = logging.getLogger("workers")

#: Seconds that a session gets to begin and end at once, when the runner is shut down while it starts.
_START_SECONDS = 1.0


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
        self._claimers = {name: self._make_claimer(queue) for name, queue in self._queues.items()}
        threads: ThreadJobs = set()
        num_workers = sum(queue.num_workers for queue in queues.values())
        self._executor = Executor(
            storage, context, copy_context(), num_workers, threads, self._is_closing
        )
        self._reports = Reports(
            storage,
            self.ledger,
            self.completer,
            self._gate,
            self._queues,
            self._claimers,
            threads,
            self._session_died,
            on_stall,
        )
        self._listening = Listening(storage.listener, self._reports.wake, self._listener_address)
        self._keeper = self._make_keeper()
        self._reports.probed_listener = self._listening.probed
        self._crew = Crew(self._queues, self._make_worker, self._die)
        self._writing = Writing(self.completer, self._task_ended)
        self._asked = False
        self._shutdown = asyncio.Event()
        self._starting = anyio.CancelScope()
        self.milestones = Milestones()
        self._grace = config.grace
        self._failure: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None

    def shutdown(self, grace: float | None = None) -> None:
        """Stop claiming and let running jobs finish for `grace` seconds; a second call with a shorter one hurries."""
        self._asked = True
        self._stop(grace)

    def _hurry(self) -> None:
        """Whoever cancels this task wants out: jobs are stopped now, and go back uncounted."""
        self._stop(0.0)

    def _stop(self, grace: float | None = None) -> None:
        if grace is not None:
            self._grace = min(self._grace, grace) if self._shutdown.is_set() else grace
            self._crew.hurry(grace)
            self._writing.hurry(grace)
        for claimer in self._claimers.values():
            claimer.close()  # what a claim on its way brings is not begun either
        self._shutdown.set()
        self._starting.cancel()

    async def run(self) -> None:
        """Live. Sets the milestones, and raises nothing that they do not say."""
        self._task = asyncio.current_task()
        try:
            try:
                await self._live()
            finally:
                await insist(self._storage.close, self._hurry)
            if self._failure is not None:
                raise self._death()
        except BaseException as error:
            known = self._failure is not None or (self._asked and not isinstance(error, Exception))
            self.milestones.over(error, known=known)
            if not isinstance(error, Exception):
                raise
        else:
            self.milestones.over(None, known=True)

    # ---------------------------------------------------------------------------------------------------------- the tree

    async def _live(self) -> None:
        try:
            with self._starting:
                await self._storage.open()
                self._keeper.start()
                await asyncio.wrap_future(self._keeper.started)
            # of Python 3.11, asyncio.wait_for may lose a cancellation on the way
            if self._is_closing():
                raise asyncio.CancelledError
            if not self._starting.cancelled_caught:
                self._writing.start()
                await self._work()
        finally:
            await insist(self._end_session, self._hurry)

    def _make_claimer(self, queue: WorkQueue) -> Claimer:
        return Claimer(
            self._storage,
            queue,
            self.ledger,
            self.completer,
            self._gate,
            tuple(sorted(job_type.name for job_type in self._registry)),
            self._config.max_batch,
            fragile=fragile_types(self._registry),
        )

    def _make_keeper(self) -> SessionKeeper:
        request = MaintenanceRequest(
            lease=self._config.lease,
            declared={job_type.name: job_type.queue for job_type in self._registry},
            queues=tuple(self._queues),
        )
        return SessionKeeper(
            self._storage.control(),
            self.ledger,
            self._reports,
            request,
            name=self._config.name,
            stall_limit=self._config.loop_stall_limit,
        )

    def _make_worker(self, queue: WorkQueue) -> Worker:
        return Worker(queue, self._executor, self._registry, self.ledger, self.completer)

    async def _end_session(self) -> None:
        """Write what is to be written, then give back what is left."""
        await self._writing.end(lambda: self._grace)
        self._keeper.stop()
        ended = asyncio.wrap_future(self._keeper.ended)
        if not self._keeper.started.done():
            # a server that says nothing is not waited for; if it does yet, the thread sees that nobody wants a session
            await asyncio.wait([ended], timeout=_START_SECONDS if self._keeper.begun else 0)
            if not ended.done():
                return
        released = await ended
        session = self.ledger.session
        self.completer.made_way(session, released.superseded)
        more = f", which gave back {released.count} jobs" if released.count else ""
        if session:  # else it has never run
            logger.info("runner stopped: session %d%s", session, more, extra={"session": session})

    async def _work(self) -> None:
        """Claim and run until shutdown, then let the workers finish."""
        self._crew.start()
        try:
            await self._claim_until_shutdown()
        except asyncio.CancelledError:
            self._hurry()
            raise
        except Exception as error:
            self._die(error)
        finally:
            for name, queue in self._queues.items():
                queue.close()
                self._claimers[name].give_back(queue.take_back())
            await insist(self._crew.finished, self._hurry)

    async def _claim_until_shutdown(self) -> None:
        session, queues = self.ledger.session, sorted(self._queues)
        async with anyio.create_task_group() as group:
            for name, claimer in self._claimers.items():
                group.start_soon(Deferred, claimer.run, name=f"claimer-{name}")
            if self._config.listen:
                group.start_soon(Deferred, self._listening.run, session, name="listening")
            if self._until_empty:
                watch = EmptyWatch(self._keeper, self.ledger, self.completer, self._claimers)
                group.start_soon(Deferred, watch.run, self.shutdown, name="watch-for-empty")
            self.milestones.is_ready()
            telemetry.emit(telemetry.SessionStarted(session=session))
            text = "runner started: session %d, queues %s"
            logger.info(text, session, queues, extra={"session": session})
            try:
                await self._shutdown.wait()
            except asyncio.CancelledError:
                if not group.cancel_scope.cancel_called:  # as where a claimer has failed
                    self._hurry()
                raise
            finally:
                for claimer in self._claimers.values():
                    claimer.close()  # from one claim to the next it is never told that it is cancelled
                # the grace does not wait for a claim that is on its way
                self._crew.start_finishing(self._grace, self._left_behind)
                group.cancel_scope.cancel()
        if not (self._shutdown.is_set() or self._is_closing()):
            self._die(RunnerError("somebody cancelled one of the runner's own tasks"))

    async def _left_behind(self, job_ids: list[int]) -> None:
        """Tell of jobs that would not end when the outcomes of all others are written: the process may end then."""
        try:
            if self._failure is None:
                await self._writing.flush()
                job_ids = self._crew.running()  # they may have ended meanwhile
        finally:
            if self._failure is not None:  # of the two this is what has to be known
                self.milestones.over(self._death(), known=True)
            elif job_ids:
                self.milestones.left_behind(job_ids)

    def _death(self) -> RunnerError:
        error = RunnerError(f"the runner died: {self._failure!r}")
        error.__cause__ = self._failure
        return error

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._die(error)

    def _session_died(self, error: BaseException) -> None:
        """Soon others take this runner's jobs for theirs."""
        self._die(error)
        self._stop(0.0)

    def _die(self, error: BaseException) -> None:
        """Something that the runner can't be without has failed: say so, and shut down."""
        if self._failure is not None:
            return
        self._failure = error
        while isinstance(self._failure, BaseExceptionGroup):
            self._failure = self._failure.exceptions[0]
        self._stop()
        logger.critical("the runner dies: %r", error, exc_info=error)

    def _is_closing(self) -> bool:
        return self._task is None or self._task.cancelling() > 0

    def _listener_address(self, address: str | None) -> None:
        self._keeper.listener_address = address
