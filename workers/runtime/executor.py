"""One attempt, from the stored row to its outcome.

Isolation comes first: the job's code runs in its own copy of the context, driven step by step inside the worker's task,
so that neither a task nor a timer is needed for it. Whatever it raises is its outcome; a cancellation that nobody here
asked for is a failure of the job and goes no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeGuard

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter

from ..errors import InvalidJobError, StorageUnavailableError
from ..lifecycle import Archive, Completed, Delete, Interrupted, Outcome, Retry, Transition, decide
from ..storage.base import Guard, Settlement, Storage
from .attempt import Attempt, Fenced
from .driving import Driven, as_coroutine, come_clean
from .failure import told
from .job_context import begin, furnish
from .job_log import log_no_thread
from .verdict import NoThread, Stopped, TooManyCrashes, Undecodable, outcome_of

__all__ = ["DONE", "Ended", "Executor", "ThreadJobs"]

#: Seconds between the tries to find out whether a transaction was committed.
_COMMIT_PAUSES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)

#: How an attempt ended, and what to write; (None, None) when the job is somebody else's by now.
Ended = tuple[Outcome, Transition] | tuple[None, None]
#: It returned, and its row goes: the end of most of them.
DONE: Ended = (Completed(), Delete())

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

    def start(self, attempt: Attempt) -> Ended | Awaitable[Ended]:
        """Run `attempt` as far as it goes without waiting: its end, or what has to be awaited for it. Neither raises.

        Most jobs that return at once need no more than this.
        """
        try:
            payload = self._prepare(attempt)
            if attempt.type.transactional or not attempt.type.is_async:
                return self._run_elsewhere(attempt, payload)
            scope = attempt.scope = self._base.copy()
            step = scope.run(begin, attempt, payload, self._context)
        except BaseException as error:
            return self._broken(attempt, error)
        if step is not None:
            return self._go_on(attempt, Driven(step[0], scope, step[1]))
        return self._returned(attempt)

    async def _go_on(self, attempt: Attempt, rest: Driven) -> Ended:
        try:
            await rest
        except BaseException as error:
            return self._broken(attempt, error)
        return self._returned(attempt)

    async def _run_elsewhere(self, attempt: Attempt, payload: Any) -> Ended:
        """In a thread, or in a transaction. The end of a transactional job is written when its `attempt.written` is set."""
        try:
            if attempt.type.transactional:
                transition = await self._run_transactional(attempt, payload)
                attempt.written = True
                return Completed(), transition
            await self._call(attempt, payload)
        except BaseException as error:
            return self._broken(attempt, error)
        return self._returned(attempt)

    def _returned(self, attempt: Attempt) -> Ended:
        if attempt.stopped is None and attempt.type.policy.archive is False:
            return DONE
        return self._decided(attempt, attempt.verdict() or Completed())

    def _broken(self, attempt: Attempt, error: BaseException) -> Ended:
        outcome = outcome_of(error, attempt, closing=self._is_closing())
        if attempt.spoiled and self._is_innocent(attempt):
            outcome = Interrupted("a cancellation that another job left behind")
        return self._decided(attempt, outcome)

    @staticmethod
    def _decided(attempt: Attempt, outcome: Outcome | Fenced) -> Ended:
        if isinstance(outcome, Fenced):
            return None, None
        transition = decide(attempt.job, outcome, attempt.type.policy)
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

    @staticmethod
    def _prepare(attempt: Attempt) -> Any:
        """Decode the payload, one job on its own: a bad row ends as a dead letter and harms nobody else."""
        job, job_type = attempt.job, attempt.type
        if job.crashes and job.crashes >= job_type.policy.max_crashes:
            raise TooManyCrashes
        try:
            return job_type.codec.decode(job.data)
        except InvalidJobError as error:  # which the job's own code may raise as well
            # what the class's own checks raised, where it was that
            cause = getattr(error.__context__, "__cause__", None)
            if job_type.secrets and hasattr(type(cause), "errors"):
                cause = None  # pydantic's: it quotes the beginning and the end of what it refuses
            raise Undecodable(str(error)) from cause

    def _enter(self, attempt: Attempt) -> Context:
        """A context of its own for the job's code."""
        scope = attempt.scope = self._base.copy()
        scope.run(furnish, attempt)
        return scope

    async def _call(self, attempt: Attempt, payload: Any) -> None:
        scope = self._enter(attempt)
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
        except BaseException as why:
            if ended.cancel():  # it had not begun
                self._threads.discard(attempt.job.id)
                attempt.scope = None
                if isinstance(why, asyncio.CancelledError):
                    raise
                log_no_thread(attempt.job, attempt.session, why)
                raise NoThread from why
            waiter = asyncio.wrap_future(ended)
            while not waiter.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([waiter])
        if error is not None:
            raise error
        return result

    async def _run_transactional(self, attempt: Attempt, payload: Any) -> Transition:
        guard = Guard(attempt.job.id, attempt.job.token)
        try:
            if attempt.type.is_async:
                await self._transaction(attempt, payload, guard)
            else:
                function = self._transaction_in_thread
                await self._in_thread(attempt, function, attempt, payload, guard)
        except StorageUnavailableError:
            committed = attempt.finishing is not None and await self._is_committed(
                attempt.session, guard
            )
            attempt.in_doubt = committed is None
            if not committed:
                raise
            if isinstance(attempt.stopped, Fenced):  # its row may be gone because it ran elsewhere
                raise Fenced from None
        assert attempt.finishing is not None  # noqa: S101 - for the type checker
        return attempt.finishing

    async def _transaction(self, attempt: Attempt, payload: Any, guard: Guard) -> None:
        async with self._storage.transaction(attempt.session, guard) as run:
            if run is None:
                raise Fenced
            attempt.connection = run.connection
            await self._call(attempt, payload)
            # a cancellation that the job left behind must not break off what comes now, nor may a later one
            await come_clean(attempt.task)
            settlement = self._finishing(attempt)
            attempt.cancellable = False
            await run.finish(settlement)
            attempt.finishing = settlement.transition

    def _transaction_in_thread(self, attempt: Attempt, payload: Any, guard: Guard) -> None:
        with self._storage.transaction_sync(attempt.session, guard) as run:
            if run is None:
                raise Fenced
            attempt.connection = run.connection
            result = self._enter(attempt).run(payload.run, self._context)
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
