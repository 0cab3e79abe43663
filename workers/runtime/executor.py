"""One attempt, from the stored row to its outcome.

Isolation comes first: the job's code runs in its own copy of the context, driven step by step inside the worker's task,
so that neither a task nor a timer is needed for it. Whatever it raises is its outcome; a cancellation that nobody here
asked for is a failure of the job and goes no further.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter

from .. import telemetry
from ..current import CurrentJob, current
from ..errors import Cancel, Discard, InvalidJobError, Snooze, StorageError
from ..job import ClaimedJob
from ..job_type import JobType
from ..lifecycle import (
    Cancelled,
    Completed,
    Crashed,
    Discarded,
    Failed,
    Interrupted,
    Outcome,
    Snoozed,
    Transition,
    decide,
)
from ..storage.base import Guard, Settlement, Storage
from .failure import describe, storable

__all__ = ["Attempt", "Executor", "Fenced", "ThreadJobs"]

#: Ids of the jobs whose code is in a thread right now. Changed by those threads, whether or not the loop still runs.
ThreadJobs = set[int]


class Fenced(Exception):  # noqa: N818 - an answer, not an error
    """The job is no longer this session's: nothing is to be written."""


class Attempt:
    """A job while it runs. `stop` ends it from outside, with the outcome that it shall have."""

    __slots__ = ("deadline", "in_thread", "job", "scope", "started", "stopped", "task", "type")

    def __init__(
        self, job: ClaimedJob, job_type: JobType, task: asyncio.Task[Any], started: float
    ) -> None:
        self.job = job
        self.type = job_type
        self.task = task
        self.started = started
        self.deadline = None if job_type.timeout is None else started + job_type.timeout
        self.in_thread = not job_type.is_async
        self.stopped: Outcome | Fenced | None = None
        #: The context of the job's code, once it has begun.
        self.scope: Context | None = None

    def stop(self, outcome: Outcome | Fenced) -> None:
        """End the attempt. A thread can't be ended: it keeps its claim until it returns, then `outcome` is written."""
        if self.stopped is None:
            self.stopped = outcome
        if not self.in_thread:
            self.task.cancel()


class Executor:
    """Runs the attempts of one queue in `base`, the context that the runner was started in."""

    def __init__(
        self,
        storage: Storage,
        context: Any,
        base: Context,
        num_workers: int,
        threads: ThreadJobs,
        is_closing: Callable[[], bool],
    ) -> None:
        self._storage = storage
        self._context = context
        self._base = base
        self._limiter = CapacityLimiter(num_workers)
        self._threads = threads
        self._is_closing = is_closing

    async def run(self, attempt: Attempt, session: int) -> tuple[Outcome | None, Transition | None]:
        """Run `attempt`: its outcome and what to write; (None, None) when the job is somebody else's by now.

        A transition of None with an outcome means that it has been written already, in the job's own transaction. Raises
        only CancelledError, when the event loop is closing over a job in a thread.
        """
        job, job_type = attempt.job, attempt.type
        try:
            payload = self._prepare(job, job_type)
            if job_type.transactional:
                await self._run_transactional(attempt, session, payload)
                return Completed(), None
            await self._call(attempt, payload, self._enter(attempt, session))
            outcome: Outcome = Completed() if attempt.stopped is None else _stopped(attempt)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and job.id in self._threads:
                raise  # the loop is closing over it; its claim must outlast its thread
            fenced = error if isinstance(error, Fenced) else attempt.stopped
            if isinstance(fenced, Fenced):
                return None, None
            outcome = self._outcome_of(error, attempt)
        return outcome, decide(job, outcome, job_type.policy)

    def _prepare(self, job: ClaimedJob, job_type: JobType) -> Any:
        """Decode the payload, one job on its own: a bad row ends as a dead letter and harms nobody else."""
        if job.crashes and job.crashes >= job_type.policy.max_crashes:
            raise _TooManyCrashes
        return job_type.codec.decode(job.data)

    def _enter(self, attempt: Attempt, session: int, connection: Any = None) -> Context:
        """A context of its own for the job's code."""
        scope = attempt.scope = self._base.copy()
        scope.run(current.set, CurrentJob(attempt.job, session, attempt.deadline, connection))
        for hook in telemetry.job_context_hooks:
            scope.run(hook, attempt.job)
        return scope

    async def _call(self, attempt: Attempt, payload: Any, scope: Context) -> None:
        if attempt.in_thread:
            result = await self._in_thread(attempt, scope.run, payload.run, self._context)
        else:
            result = scope.run(payload.run, self._context)
        if isinstance(result, Coroutine):
            # most jobs that return at once need no more than this
            try:
                waited_for = scope.run(result.send, None)
            except StopIteration:
                return
            await _Driven(result, scope, waited_for)
        elif inspect.isawaitable(result):
            await _Driven(_awaited(result), scope, None)

    async def _in_thread(self, attempt: Attempt, function: Callable[..., Any], *args: Any) -> Any:
        def work() -> Any:
            try:
                return function(*args)
            finally:
                self._threads.discard(job_id)

        job_id = attempt.job.id
        self._threads.add(job_id)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=False)

    async def _run_transactional(self, attempt: Attempt, session: int, payload: Any) -> None:
        guard = Guard(attempt.job.id, attempt.job.token)
        if attempt.in_thread:
            await self._in_thread(attempt, self._transaction_in_thread, attempt, session, payload)
            return
        async with self._storage.transaction(session, guard) as run:
            if run is None:
                raise Fenced
            await self._call(attempt, payload, self._enter(attempt, session, run.connection))
            await run.finish(self._finishing(attempt))

    def _transaction_in_thread(self, attempt: Attempt, session: int, payload: Any) -> None:
        with self._storage.transaction_sync(
            session, Guard(attempt.job.id, attempt.job.token)
        ) as run:
            if run is None:
                raise Fenced
            result = self._enter(attempt, session, run.connection).run(payload.run, self._context)
            if inspect.isawaitable(result):
                if isinstance(result, Coroutine):
                    result.close()
                raise TypeError(
                    "`def run` of a transactional job returned an awaitable; make it `async def run`"
                )
            run.finish(self._finishing(attempt))

    @staticmethod
    def _finishing(attempt: Attempt) -> Settlement:
        if (
            attempt.stopped is not None
        ):  # it ran out of time in a thread: nothing of it may be committed
            raise _Stopped
        job = attempt.job
        transition = decide(job, Completed(), attempt.type.policy)
        return Settlement(Guard(job.id, job.token), job.deduplicated, transition)

    def _outcome_of(self, error: BaseException, attempt: Attempt) -> Outcome:
        """What an exception means. `_Stopped`, and the cancellation it causes, mean what the stop said."""
        if attempt.stopped is not None and isinstance(error, asyncio.CancelledError | _Stopped):
            return _stopped(attempt)
        match error:
            case Cancel():
                return Cancelled(_storable(error.reason))
            case Discard():
                return Discarded(_storable(error.reason) or "discarded by the job", describe(error))
            case Snooze():
                return Snoozed(error.seconds)
            case _TooManyCrashes():
                return Crashed()
            case InvalidJobError():
                return Discarded(_storable(str(error)), None)
            case StorageError():
                return Failed(describe(error), error)
            case asyncio.CancelledError() if self._is_closing():
                return Interrupted("the event loop is closing")
            case asyncio.CancelledError():
                return Failed("the job cancelled the task it ran in", error)
        if attempt.stopped is not None:
            return _stopped(attempt)
        return Failed(describe(error), error)


class _TooManyCrashes(Exception):  # noqa: N818
    """Raised before a job that killed its process too often would run again."""


class _Stopped(Exception):  # noqa: N818
    """Raised where a stopped job would have committed."""


class _Driven(Awaitable[None]):
    """A coroutine that has started, continued inside its own context."""

    __slots__ = ("_coroutine", "_scope", "_waited_for")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], scope: Context, waited_for: Any
    ) -> None:
        self._coroutine = coroutine
        self._scope = scope
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, None]:
        enter, send, throw = self._scope.run, self._coroutine.send, self._coroutine.throw
        waited_for = self._waited_for
        try:
            if (
                waited_for is None
                and inspect.getcoroutinestate(self._coroutine) == inspect.CORO_CREATED
            ):
                waited_for = enter(send, None)
            while True:
                try:
                    sent = yield waited_for
                except GeneratorExit:
                    enter(self._coroutine.close)
                    raise
                except BaseException as error:
                    waited_for = enter(throw, error)
                else:
                    waited_for = enter(send, sent)
        except StopIteration:
            return


async def _awaited(value: Awaitable[Any]) -> None:
    await value


def _stopped(attempt: Attempt) -> Outcome:
    """The outcome that a stop asked for. One that came from a timeout gets its text here, when the job has really ended."""
    outcome = attempt.stopped
    if outcome is None or isinstance(outcome, Fenced):
        return Interrupted()
    if isinstance(outcome, Failed):
        return Failed(
            f"{outcome.error} (ended after {time.monotonic() - attempt.started:.3g} s)",
            outcome.exception,
        )
    return outcome


def _storable(reason: Any) -> str:
    try:
        return storable(str(reason))
    except Exception:
        return f"(a {type(reason).__name__} whose text can't be had)"
