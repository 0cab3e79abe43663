"""`Runner`: what to run, where, and with how many workers."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, Generic, Self, TypeVar

import anyio

from .background_job import BackgroundJob
from .config import QueueConfig, RunnerConfig, check_name
from .errors import ConfigurationError, FailedJobsError, RunnerError
from .handle import RunnerHandle, RunnerThread
from .registry import Registry
from .runtime.session import StallHandler
from .runtime.supervisor import Supervisor
from .storage import Storage, StorageTarget, check_target, open_storage, storage_of

__all__ = ["Runner"]

logger = logging.getLogger("workers")

ContextT = TypeVar("ContextT")
_Seconds = float | timedelta
DEFAULT_QUEUE = "default"
#: Of so many failed jobs `check_for_failed_jobs` shows the error.
_SHOWN_FAILURES = 3


class Runner(Generic[ContextT]):
    """Runs the jobs of registered types, with a number of workers for each queue.

    `target` is an AsyncConnectionPool (an open one is left open, another is opened and closed), a DSN, or a Storage; it is
    looked at here, and connected to at the start. `context` is handed to every job.

    `lease` (15 s): a session that does not renew it is dead. `grace` (30 s): what running jobs get at shutdown.
    `loop_stall_limit` (60 s): a blocked event loop is reported. `listen` (True): False to poll only. `max_batch` (500): the
    most jobs that one claim takes. `name`: what the runner is called in logs and tables. Raises ConfigurationError.
    """

    def __init__(
        self,
        target: StorageTarget,
        context: ContextT,
        *,
        lease: _Seconds | None = None,
        grace: _Seconds | None = None,
        loop_stall_limit: _Seconds | None = None,
        listen: bool | None = None,
        max_batch: int | None = None,
        name: str | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "lease": lease,
            "grace": grace,
            "loop_stall_limit": loop_stall_limit,
            "listen": listen,
            "max_batch": max_batch,
            "name": name,
        }
        self._target = check_target(target)
        self._context = context
        self._config = RunnerConfig(
            **{field: value for field, value in given.items() if value is not None}
        )
        self._registry = Registry()
        self._queues: dict[str, QueueConfig] = {}
        self._until_empty = False
        self._started = False
        #: Whether `run` has ended because of a signal, and not because the queues were empty.
        self._told_to_end = False
        #: Seconds within which two SIGTERMs are one, for a process that is told twice.
        self._same_request = 0.0

    @property
    def loop_stall_limit(self) -> float:
        """Seconds after which a blocked event loop is reported."""
        return self._config.loop_stall_limit

    def __repr__(self) -> str:
        names = ", ".join(job_type.name for job_type in self._registry) or "no job types"
        return f"<Runner {self._config.name}: {names}>"

    def register_job_type(self, job_class: type[BackgroundJob[ContextT]]) -> Self:
        """Run jobs of this class; its queue is worked from now on.

        Raises RegistrationError if another registered class has its name, ConfigurationError if a setting that was assigned
        to it later is wrong, and after `start`.
        """
        self._refuse_late("register job types")
        job_type = self._registry.register(job_class)
        self._queues.setdefault(job_type.queue, QueueConfig())
        return self

    def configure_queue(
        self,
        name: str,
        *,
        num_workers: int | None = None,
        poll_interval: _Seconds | None = None,
        jitter: _Seconds | None = None,
    ) -> Self:
        """Set how queue `name` is worked: jobs at a time (10), seconds between looks (1) and random addition (0.1).

        Raises ConfigurationError, also after `start`.
        """
        self._refuse_late("configure queues")
        check_name("the queue's name", name)
        given = {"num_workers": num_workers, "poll_interval": poll_interval, "jitter": jitter}
        current = self._queues.get(name, QueueConfig())
        settings = {field: getattr(current, field) for field in QueueConfig.__struct_fields__}
        settings |= {field: value for field, value in given.items() if value is not None}
        self._queues[name] = QueueConfig(**settings)
        return self

    def configure_default_queue(
        self,
        *,
        num_workers: int | None = None,
        poll_interval: _Seconds | None = None,
        jitter: _Seconds | None = None,
    ) -> Self:
        """`configure_queue` for the queue "default"."""
        return self.configure_queue(
            DEFAULT_QUEUE, num_workers=num_workers, poll_interval=poll_interval, jitter=jitter
        )

    def shutdown_when_queue_empty(self) -> Self:
        """Shut down when a full scan finds nothing claimable and nothing runs in this runner.

        Jobs that are scheduled, wait for a retry, or run elsewhere do not count. Raises ConfigurationError after `start`.
        """
        self._refuse_late("call shutdown_when_queue_empty")
        self._until_empty = True
        return self

    def start(self, *, on_stall: StallHandler | None = None) -> RunnerHandle:
        """Start in the running event loop; returns at once, installs no signal handlers.

        Raises RunnerError without a running asyncio loop, ConfigurationError when there is nothing to run, or transactional
        types on an engine without transactions.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RunnerError(
                "Runner.start() needs a running asyncio loop: call it from async code, use `await runner.run()`, or host "
                "the runner in a synchronous program with runner.start_in_thread()"
            ) from None
        if not len(self._registry):
            raise ConfigurationError(
                "no job type is registered: call register_job_type before start"
            )
        storage = storage_of(self._target, listen=self._config.listen)
        self._refuse_transactional(storage)
        self._tell_undeclared_queues()
        supervisor = Supervisor(
            storage,
            self._registry,
            self._queues,
            self._context,
            self._config,
            until_empty=self._until_empty,
            on_stall=on_stall,
        )
        self._started = True
        return RunnerHandle(supervisor)

    async def run(self, *, on_stall: StallHandler | None = None) -> list[int]:
        """Run as a process of its own: until SIGTERM or SIGINT, which let running jobs finish; a second one does not wait.

        Returns the ids of jobs that would not end. Raises what made the runner die. When it is cancelled it stops the jobs
        that run, which go back uncounted, and ends. Handlers that the loop itself has for these signals are called, too.
        `on_stall(seconds, stack)` is called on the session's thread when the loop has been blocked for `loop_stall_limit`.
        """
        handle = self.start(on_stall=on_stall)
        with _signals_to(handle, self._same_request):
            try:
                return await handle.wait_for_shutdown()
            except asyncio.CancelledError:  # nobody else has the handle
                handle.shutdown(grace=0.0)
                with anyio.CancelScope(shield=True):
                    await handle.wait_for_shutdown()
                raise
            finally:
                self._told_to_end = handle.shutting_down

    def start_in_thread(self) -> RunnerThread:
        """Host the runner in a synchronous program: a thread with an event loop of its own.

        Returns when it is ready. Raises what kept it from starting.
        """
        return RunnerThread(self.start)

    async def check_for_failed_jobs(self) -> None:
        """Raise FailedJobsError if a job is dead, or has failed and not succeeded since. Meant for tests."""
        async with open_storage(self._target) as storage:
            count, job_ids = await storage.failed_jobs()
            found = [await storage.find(job_id) for job_id in job_ids[:_SHOWN_FAILURES]]
        if count:
            raise FailedJobsError(count, job_ids, [job for job in found if job is not None])

    def _refuse_transactional(self, storage: Storage) -> None:
        if storage.capabilities.transactional:
            return
        names = [kind.job_class.__qualname__ for kind in self._registry if kind.transactional]
        if names:
            verb = "is" if len(names) == 1 else "are"
            raise ConfigurationError(
                f"{' and '.join(names)} {verb} transactional, and the engine {type(storage).__name__} has no transactions: "
                "give this runner a PostgreSQL, in a test too, or call `run` of such a job directly"
            )

    def _tell_undeclared_queues(self) -> None:
        declared = {kind.queue for kind in self._registry}
        for name in sorted(self._queues.keys() - declared):
            text = "queue %r is worked, but no registered type declares it; jobs reach it only by enqueue(queue=...)"
            if close := difflib.get_close_matches(name, declared, n=1, cutoff=0.8):
                logger.warning(f"{text}; did you mean %r?", name, close[0])
            else:
                logger.info(text, name)

    def _refuse_late(self, what: str) -> None:
        if self._started:  # a running one would not notice, or only half of it
            raise ConfigurationError(f"this Runner has been started: {what} before start()")


@contextlib.contextmanager
def _signals_to(handle: RunnerHandle, same_request: float) -> Iterator[None]:
    """SIGTERM and SIGINT shut the runner down; where there can be no handlers, nothing.

    By `signal.signal`, as asyncio itself does for SIGINT: the loop's own handlers are an application's, and can't be asked
    for, so that they could not be put back.
    """
    loop, terminated_at = asyncio.get_running_loop(), -math.inf

    def take(number: int, frame: FrameType | None) -> None:
        nonlocal terminated_at
        if number == signal.SIGTERM:
            before, terminated_at = terminated_at, time.monotonic()
            if terminated_at - before < same_request:
                return
        # this wakes the loop, too; in the rare case that another thread was interrupted, the session's next tick does
        loop.call_soon_threadsafe(_on_signal, handle, signal.Signals(number))

    before = {}
    for number in (signal.SIGTERM, signal.SIGINT) if sys.platform != "win32" else ():
        try:
            before[number] = signal.signal(number, take)
        except ValueError:  # not the main thread
            logger.debug("no handler for %s here", number)
    try:
        yield
    finally:
        for number, previous in before.items():
            if signal.getsignal(number) is take:  # else it is somebody's who came later
                signal.signal(number, previous or signal.SIG_DFL)


def _on_signal(handle: RunnerHandle, number: signal.Signals) -> None:
    if handle.shutting_down:
        logger.warning("%s again: stopping the jobs that run", number.name)
        handle.shutdown(grace=0.0)
    else:
        logger.info("%s: finishing the jobs that run", number.name)
        handle.shutdown()
