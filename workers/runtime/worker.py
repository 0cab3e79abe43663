"""A worker: a long-lived task that runs one job at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time

import anyio

from .. import telemetry
from ..job import ClaimedJob
from ..lifecycle import Bury, Delete, Failed, Outcome, Release, Transition
from ..registry import Registry
from .attempt import Attempt
from .claimer import SHARED_CRASHES
from .completer import Completer
from .driving import come_clean
from .executor import Executor
from .gate import Gate
from .job_log import log_end, log_overrun, log_start
from .ledger import Ledger
from .work_queue import WorkQueue

__all__ = ["Worker"]

logger = logging.getLogger("workers")

#: A worker whose jobs never wait for anything lets the event loop have its turn this often.
_SLICE = 0.0005
#: Seconds that a job gets to clean up after itself when its time is over, before it is asked again to end.
ASK_AGAIN = 5.0


class Worker:
    """Takes jobs from `queue`, runs them and reports how they ended."""

    def __init__(
        self,
        queue: WorkQueue,
        executor: Executor,
        registry: Registry,
        ledger: Ledger,
        completer: Completer,
        gate: Gate,
    ) -> None:
        self._queue = queue
        self._executor = executor
        self._registry = registry
        self._ledger = ledger
        self._completer = completer
        self._gate = gate

    async def run(self) -> None:
        """Work until the queue is closed, or until a job has made this task unfit for others."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        queue, slice_end, fresh = self._queue, 0.0, True
        while True:
            # a cancellation that a job left behind, or that came while none ran here, is not the next one's
            if task.cancelling():
                await come_clean(task)
                if anyio.current_effective_deadline() == -math.inf:
                    logger.error("a job left a cancelled scope behind: its worker is replaced")
                    return
            job = queue.pop()
            if job is None:
                if queue.closed:
                    return
                with contextlib.suppress(asyncio.CancelledError):
                    await queue.wait()
                slice_end = time.monotonic() + _SLICE
                continue
            if not await self._work(job, task, fresh):
                logger.warning(
                    "a job ended by a cancellation that nobody asked for: its worker is replaced"
                )
                return
            fresh = False
            if time.monotonic() >= slice_end:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                slice_end = time.monotonic() + _SLICE

    async def _work(self, job: ClaimedJob, task: asyncio.Task[None], fresh: bool) -> bool:
        """Run one job; False: this task is not fit for another one."""
        session = self._ledger.session_of(job.token)
        started = time.monotonic()
        job_type = self._registry.get(job.job_type)
        if job_type is None:  # claims are filtered by type: never touch what is not known
            self._completer.ended(job, Release())
            return True
        attempt = Attempt(job, job_type, task, started, fresh=fresh)
        running = self._queue.running
        running.add(attempt)
        timer = None if attempt.deadline is None else _Timer(attempt, session)
        if telemetry.wanted(telemetry.JobStarted):
            telemetry.emit(
                telemetry.JobStarted(
                    session=session, job=attempt.shown if job_type.secrets else job
                )
            )
        log_start(job, session)
        outcome, transition = await self._executor.run(attempt, session)
        running.discard(attempt)
        if timer is not None:
            timer.cancel()
        if job.crashes > SHARED_CRASHES:
            self._gate.free()
        duration = time.monotonic() - started
        self._queue.demand.ran(duration)
        if outcome is None or transition is None:  # the job is somebody else's by now
            self._completer.taken_away(job, session)
            return not attempt.spoiled
        if attempt.written:
            self._completer.dropped(job)
        elif type(transition) is Delete:
            self._completer.completed(job)
        else:
            self._completer.ended(job, transition, in_doubt=attempt.in_doubt)
        self._report(attempt, session, outcome, transition, duration)
        return not attempt.spoiled

    def _report(
        self,
        attempt: Attempt,
        session: int,
        outcome: Outcome,
        transition: Transition,
        duration: float,
    ) -> None:
        job = attempt.shown if attempt.type.secrets else attempt.job
        if telemetry.wanted(telemetry.JobFinished):
            telemetry.emit(
                telemetry.JobFinished(
                    session=session,
                    job=job,
                    outcome=outcome,
                    transition=transition,
                    duration=duration,
                )
            )
        if isinstance(transition, Bury) and telemetry.wanted(telemetry.JobDied):
            event = telemetry.JobDied(
                session=session, job=job, outcome=outcome, transition=transition
            )
            attempt.scope.run(
                telemetry.emit, event
            ) if attempt.scope is not None else telemetry.emit(event)
        log_end(job, session, outcome, transition, duration)


class _Timer:
    """Stops an attempt at its deadline, and asks again, now and then, if it goes on."""

    def __init__(self, attempt: Attempt, session: int) -> None:
        self._attempt = attempt
        self._session = session
        self._warned = False
        self._loop = asyncio.get_running_loop()
        delay = (attempt.deadline or 0.0) - time.monotonic()
        self._handle = self._loop.call_later(max(0.0, delay), self._strike)

    def _strike(self) -> None:
        attempt, timeout = self._attempt, self._attempt.type.timeout or 0.0
        text = f"timed out after {timeout:g} s"
        attempt.stop(Failed(text, TimeoutError(text)))
        if not (attempt.cancellable or attempt.type.is_async or self._warned):
            self._warned = True
            log_overrun(attempt.job, self._session, timeout)
        self._handle = self._loop.call_later(ASK_AGAIN, self._strike)

    def cancel(self) -> None:
        self._handle.cancel()
