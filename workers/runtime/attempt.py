"""One execution of a job, as seen from outside: what it is, and how it is stopped."""

from __future__ import annotations

import asyncio
import time
from contextvars import Context
from typing import Any

import msgspec

from ..hiding import Hiding
from ..job import ClaimedJob
from ..job_type import JobType
from ..lifecycle import Failed, Interrupted, Outcome, Transition
from .job_log import spoken

__all__ = ["Attempt", "Fenced"]


class Fenced(Exception):  # noqa: N818 - an answer, not an error
    """The job is no longer this session's: nothing is to be written."""


class Attempt:
    """A job while it runs. `stop` ends it from outside, with the outcome that it shall have."""

    __slots__ = (
        "cancellable",
        "deadline",
        "finishing",
        "fresh",
        "in_doubt",
        "job",
        "scope",
        "spoiled",
        "started",
        "stopped",
        "task",
        "type",
        "written",
    )

    def __init__(
        self,
        job: ClaimedJob,
        job_type: JobType,
        task: asyncio.Task[Any],
        started: float,
        *,
        fresh: bool = True,
    ) -> None:
        self.job = job
        self.type = job_type
        self.task = task
        self.started = started
        #: Whether it is the first one in its task: no other job can have left anything behind there.
        self.fresh = fresh
        #: A cancellation came that nobody had asked for: the task is not fit for others.
        self.spoiled = False
        self.deadline = None if job_type.timeout is None else started + job_type.timeout
        #: False while its code is in a thread, or its transaction is being committed.
        self.cancellable = job_type.is_async
        self.stopped: Outcome | Fenced | None = None
        #: The context of the job's code, once it has begun.
        self.scope: Context | None = None
        #: What its own transaction was told to write, and whether that was written.
        self.finishing: Transition | None = None
        self.written = False
        #: Whether its transaction was committed could not be found out.
        self.in_doubt = False

    @property
    def hide(self) -> Hiding | None:
        """What takes the values of its marked fields out of texts; None where it has none."""
        secrets = self.type.secrets
        return Hiding(self.job.data, secrets, self.type.job_class) if secrets else None

    @property
    def shown(self) -> ClaimedJob:
        """The job as others may see it."""
        hide = self.hide
        return self.job if hide is None else msgspec.structs.replace(self.job, data=hide.data)

    def stop(self, outcome: Outcome | Fenced) -> None:
        """End the attempt, with `outcome`. A thread can't be ended: it keeps its claim until it returns."""
        if self.stopped is None:
            self.stopped = outcome
        if self.cancellable:
            self.task.cancel()

    def verdict(self) -> Outcome | Fenced | None:
        """What becomes of the job that was stopped, whatever it did since; None if that is its own business.

        What is in a thread does not notice an interruption: it has come to its own end, which counts.
        """
        stopped = self.stopped
        if isinstance(stopped, Interrupted) and not self.cancellable:
            return None
        if isinstance(
            stopped, Failed
        ):  # it ran out of time; now that it has ended, how long it took is known
            took = time.monotonic() - self.started
            return Failed(f"{stopped.error} (ended after {spoken(took)})", stopped.exception)
        return stopped
