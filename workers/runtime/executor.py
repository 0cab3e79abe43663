"""One attempt, from the stored row to its outcome.

Isolation comes first: the job's code runs in its own copy of the context, driven step by step inside the worker's task,
so that neither a task nor a timer is needed for it. Whatever it raises is its outcome; a cancellation that nobody here
asked for is a failure of the job and goes no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeGuard

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter

from .. import telemetry
from ..current import CurrentJob, current
from ..errors import InvalidJobError, StorageUnavailableError
from ..hiding import hiding
from ..job import ClaimedJob
from ..job_type import JobType
from ..lifecycle import Archive, Completed, Delete, Interrupted, Outcome, Retry, Transition, decide
from ..storage.base import Guard, Settlement, Storage
from .attempt import Attempt, Fenced
from .driving import Driven, as_coroutine, come_clean
from .failure import told
from .verdict import Stopped, TooManyCrashes, Undecodable, outcome_of

__all__ = ["Executor", "ThreadJobs"]

logger = logging.getLogger("workers")

#: Seconds between the tries to find out whether a transaction was committed.
_COMMIT_PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)

#: Ids of the jobs whose code is in a thread right now. Changed by those threads, whether or not the loop still runs.
ThreadJobs = set[int]


class Executor:
    """Runs attempts in copies of `base`, the context that the runner was started in."""

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
        self._doubted: set[int] = set()

    async def run(self, attempt: Attempt, session: int) -> tuple[Outcome | None, Transition | None]:
        """Run `attempt`: its outcome and what to write; (None, None) when the job is somebody else's by now.

        The end of a transactional job is written already when its `attempt.written` is set. Raises nothing.
        """
        job, job_type = attempt.job, attempt.type
        outcome: Outcome | Fenced
        try:
            payload = self._prepare(job, job_type)
            if job_type.transactional:
                transition = await self._run_transactional(attempt, session, payload)
                attempt.written = True
                return Completed(), transition
            await self._call(attempt, payload, self._enter(attempt, session))
            outcome = attempt.verdict() or Completed()
        except BaseException as error:
            outcome = outcome_of(error, attempt, closing=self._is_closing())
            if attempt.spoiled and self._is_innocent(attempt):
                outcome = Interrupted("a cancellation that another job left behind")
        if isinstance(outcome, Fenced):
            return None, None
        transition = decide(job, outcome, job_type.policy)
        if type(transition) is not Delete:
            transition = _presentable(transition, attempt)
        return outcome, transition

    def _is_innocent(self, attempt: Attempt) -> bool:
        """Whether to believe that the cancellation which ended the attempt was not its own doing: surely if its code had
        not begun; else once for each job, and not where no other job ran before in the same task. A scope or a timeout
        that is left open strikes later."""
        job_id = attempt.job.id
        if attempt.scope is None:
            return True
        if attempt.fresh or job_id in self._doubted:
            self._doubted.discard(job_id)
            return False
        self._doubted.add(job_id)
        return True

    def _prepare(self, job: ClaimedJob, job_type: JobType) -> Any:
        """Decode the payload, one job on its own: a bad row ends as a dead letter and harms nobody else."""
        if job.crashes and job.crashes >= job_type.policy.max_crashes:
            raise TooManyCrashes
        try:
            return job_type.codec.decode(job.data)
        except InvalidJobError as error:  # which the job's own code may raise as well
            # what the class's own checks raised, where it was that
            raise Undecodable(str(error)) from getattr(error.__context__, "__cause__", None)

    def _enter(self, attempt: Attempt, session: int, connection: Any = None) -> Context:
        """A context of its own for the job's code."""
        scope = attempt.scope = self._base.copy()
        scope.run(current.set, CurrentJob(attempt.job, session, attempt.deadline, connection))
        job = attempt.job
        if attempt.type.secrets and (hide := attempt.hide) is not None:
            scope.run(hiding.set, hide)
            job = attempt.shown
        for hook in telemetry.job_context_hooks:
            try:
                scope.run(hook, job)
            except Exception:
                logger.exception("a hook for job contexts failed")
        return scope

    async def _call(self, attempt: Attempt, payload: Any, scope: Context) -> None:
        if attempt.type.is_async:
            result = scope.run(payload.run, self._context)
        else:
            result = await self._in_thread(attempt, scope.run, payload.run, self._context)
            if not _is_awaitable(result):
                return
            result = as_coroutine(result)
            attempt.cancellable = True
            if attempt.stopped is not None:
                result.close()
                raise Stopped
        # most jobs that return at once need no more than this
        try:
            waited_for = scope.run(result.send, None)
        except StopIteration:
            return
        await Driven(result, scope, waited_for)

    async def _in_thread(self, attempt: Attempt, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` in a thread, and stay until it has ended: whoever cancels this task, a thread goes on."""
        result: Any = None
        error: BaseException | None = None
        ended: Future[None] = Future()

        def work() -> None:
            nonlocal result, error
            if not ended.set_running_or_notify_cancel():
                return
            try:
                result = function(*args)
            except BaseException as raised:
                error = raised
            finally:
                self._threads.discard(attempt.job.id)
                ended.set_result(None)

        self._threads.add(attempt.job.id)
        try:
            await anyio.to_thread.run_sync(work, limiter=self._limiter)
        except asyncio.CancelledError:
            if ended.cancel():  # it had not begun
                self._threads.discard(attempt.job.id)
                attempt.scope = None
                raise
            waiter = asyncio.wrap_future(ended)
            while not waiter.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([waiter])
        if error is not None:
            raise error
        return result

    async def _run_transactional(self, attempt: Attempt, session: int, payload: Any) -> Transition:
        guard = Guard(attempt.job.id, attempt.job.token)
        try:
            if attempt.type.is_async:
                await self._transaction(attempt, session, payload, guard)
            else:
                function = self._transaction_in_thread
                await self._in_thread(attempt, function, attempt, session, payload, guard)
        except StorageUnavailableError:
            committed = attempt.finishing is not None and await self._is_committed(session, guard)
            attempt.in_doubt = committed is None
            if not committed:
                raise
        assert attempt.finishing is not None  # noqa: S101 - for the type checker
        return attempt.finishing

    async def _transaction(
        self, attempt: Attempt, session: int, payload: Any, guard: Guard
    ) -> None:
        async with self._storage.transaction(session, guard) as run:
            if run is None:
                raise Fenced
            await self._call(attempt, payload, self._enter(attempt, session, run.connection))
            # a cancellation that the job left behind must not break off what comes now, nor may a later one
            await come_clean(attempt.task)
            settlement = self._finishing(attempt)
            attempt.cancellable = False
            await run.finish(settlement)
            attempt.finishing = settlement.transition

    def _transaction_in_thread(
        self, attempt: Attempt, session: int, payload: Any, guard: Guard
    ) -> None:
        with self._storage.transaction_sync(session, guard) as run:
            if run is None:
                raise Fenced
            result = self._enter(attempt, session, run.connection).run(payload.run, self._context)
            if _is_awaitable(result):
                as_coroutine(result).close()
                raise TypeError(
                    "`def run` of a transactional job returned an awaitable; make it `async def run`"
                )
            settlement = self._finishing(attempt)
            run.finish(settlement)
            attempt.finishing = settlement.transition

    async def _is_committed(self, session: int, guard: Guard) -> bool | None:
        """Whether a commit whose reply was lost was carried out: then the row is not there any more. None: no answer."""
        for pause in _COMMIT_PAUSES:
            with contextlib.suppress(StorageUnavailableError):
                async with self._storage.transaction(session, guard) as run:
                    return run is None
            await asyncio.sleep(pause)
        return None

    @staticmethod
    def _finishing(attempt: Attempt) -> Settlement:
        if attempt.verdict() is not None:  # nothing of it may be committed
            raise Stopped
        job = attempt.job
        transition = _presentable(decide(job, Completed(), attempt.type.policy), attempt)
        return Settlement(Guard(job.id, job.token), job.deduplicated, transition)


def _presentable(transition: Transition, attempt: Attempt) -> Transition:
    """The same, with nothing in it that must not be shown."""
    if isinstance(transition, Archive | Retry) and transition.fault is not None:
        fault = told(transition.fault, attempt.hide)[1]
        return msgspec.structs.replace(transition, fault=fault)
    return transition


def _is_awaitable(result: Any) -> TypeGuard[Awaitable[Any]]:
    """Whether what `def run` returned is to be awaited. Raises TypeError for a generator: nothing of it would run."""
    if inspect.isawaitable(result):
        return True
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("`run` contains `yield`, so that calling it runs nothing of it")
    return False
