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
from ..lifecycle import Bury, Completed, Delete, Failed, Release
from ..registry import Registry
from .attempt import ASK_AGAIN, Attempt
from .completer import Completer
from .driving import come_clean, is_struck
from .executor import DONE, Ended, Executor
from .job_log import is_talkative, log_end, log_overrun, log_start
from .ledger import Ledger
from .work_queue import WorkQueue

__all__ = ["Worker"]

logger = logging.getLogger("workers")

#: A worker whose jobs never wait for anything lets the event loop have its turn this often.
_SLICE = 0.001


class Worker:
    """Takes jobs from `queue`, runs them and reports how they ended."""

    def __init__(
        self,
        queue: WorkQueue,
        executor: Executor,
        registry: Registry,
        ledger: Ledger,
        completer: Completer,
    ) -> None:
        self._queue = queue
        self._executor = executor
        self._registry = registry
        self._ledger = ledger
        self._completer = completer

    async def run(self) -> None:
        """Work until the queue is closed, or until a job has made this task unfit for others."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._queue.active += 1
        try:
            await self._run(task)
        except GeneratorExit:  # its loop is gone: there is nobody to wake
            self._queue.active -= 1
            raise
        self._queue.stands_still()

    async def _run(self, task: asyncio.Task[None]) -> None:
        queue, fresh = self._queue, True
        now, slice_end = time.monotonic(), 0.0
        while True:
            # a cancellation that a job left behind, or that came while none ran here, is not the next one's
            if task.cancelling() or is_struck(task):
                await come_clean(task)
                if anyio.current_effective_deadline() == -math.inf:
                    logger.error("a job left a cancelled scope behind: its worker is replaced")
                    return
                now = time.monotonic()
            job = queue.pop(now)
            if job is None:
                if queue.closed:
                    return
                with contextlib.suppress(asyncio.CancelledError):
                    await queue.wait()
                now = time.monotonic()
                slice_end = 0.0 if queue.active > 1 else now + _SLICE
                continue
            attempt = self._begin(job, task, now, fresh)
            if attempt is None:
                continue
            ended = self._executor.start(attempt)
            if not isinstance(ended, tuple):
                queue.stands_still()
                try:
                    ended = await ended
                finally:
                    queue.active += 1
                slice_end = 0.0 if queue.active > 1 else time.monotonic() + _SLICE
            now = self._end(attempt, ended)
            if attempt.spoiled:
                logger.warning(
                    "a job ended by a cancellation that nobody asked for: its worker is replaced"
                )
                return
            fresh = False
            if now >= slice_end:
                with contextlib.suppress(asyncio.CancelledError):
                    await (queue.step_aside() if queue.active > 1 else asyncio.sleep(0))
                now = time.monotonic()
                slice_end = now + _SLICE

    def _begin(
        self, job: ClaimedJob, task: asyncio.Task[None], now: float, fresh: bool
    ) -> Attempt | None:
        """The attempt to start; None for a job that nothing is known of."""
        job_type = self._registry.get(job.job_type)
        if job_type is None:  # claims are filtered by type: never touch what is not known
            self._completer.ended(job, Release())
            return None
        session = self._ledger.session_of(job.token)
        attempt = Attempt(job, job_type, task, session, now, job_type.is_async, fresh)
        self._queue.running.add(attempt)
        if job_type.timeout is not None:
            attempt.timer = _Timer(attempt)
        if telemetry.wanted(telemetry.JobStarted):
            telemetry.emit(
                telemetry.JobStarted(
                    session=session, job=attempt.shown if job_type.secrets else job
                )
            )
        log_start(job, session)
        return attempt

    def _end(self, attempt: Attempt, ended: Ended) -> float:
        """Report how it ended; the time after that, by the monotonic clock."""
        job, queue = attempt.job, self._queue
        queue.running.discard(attempt)
        if attempt.timer is not None:
            attempt.timer.cancel()
        now = time.monotonic()
        duration = now - attempt.started
        queue.demand.ran(duration, returned=ended is DONE or type(ended[0]) is Completed)
        if ended is DONE:
            self._completer.completed(job)
        else:
            self._write(attempt, ended)
        if ended is not DONE or telemetry.wanted(telemetry.JobFinished) or is_talkative():
            self._report(attempt, ended, duration)
            now = time.monotonic()  # whoever listens may have taken his time
        # they refer to it in turn, and what the job has left in its context is not to wait for the garbage collector
        attempt.scope = attempt.timer = None
        return now

    def _write(self, attempt: Attempt, ended: Ended) -> None:
        job, (_, transition) = attempt.job, ended
        if transition is None:  # the job is somebody else's by now
            self._completer.taken_away(job, attempt.session)
        elif attempt.written:
            self._completer.dropped(job)
        elif type(transition) is Delete:
            self._completer.completed(job)
        else:
            self._completer.ended(job, transition, in_doubt=attempt.in_doubt)

    def _report(self, attempt: Attempt, ended: Ended, duration: float) -> None:
        session, (outcome, transition) = attempt.session, ended
        if outcome is None or transition is None:
            return
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

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._warned = False
        self._loop = asyncio.get_running_loop()
        delay = attempt.deadline - time.monotonic()
        self._handle = self._loop.call_later(max(0.0, delay), self._strike)

    def _strike(self) -> None:
        attempt, timeout = self._attempt, self._attempt.type.timeout or 0.0
        text = f"timed out after {timeout:g} s"
        attempt.stop(Failed(text, TimeoutError(text)))
        if not (attempt.cancellable or attempt.type.is_async or self._warned):
            self._warned = True
            log_overrun(attempt.job, attempt.session, timeout)
        self._handle = self._loop.call_later(ASK_AGAIN, self._strike)

    def cancel(self) -> None:
        self._handle.cancel()
