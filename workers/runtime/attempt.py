"""One execution of a job, as seen from outside: what it is, and how it is stopped."""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import Context
from typing import Any, Protocol

import msgspec

from ..current import CurrentJob
from ..hiding import Hiding
from ..job import ClaimedJob
from ..job_type import JobType
from ..lifecycle import Failed, Interrupted, Outcome, Transition
from .job_log import spoken

__all__ = ["ASK_AGAIN", "Attempt", "Fenced"]

#: Seconds that a job gets to clean up after itself when it is stopped, before it is asked again to end.
ASK_AGAIN = 5.0


class Fenced(Exception):  # noqa: N818 - an answer, not an error
    """The job is no longer this session's: nothing is to be written."""


class Timer(Protocol):
    """Something that can be called off."""

    def cancel(self) -> None: ...


class Attempt(msgspec.Struct, eq=False):
    """A job while it runs. `stop` ends it from outside, with the outcome that it shall have.

    `cancellable`: False while its code is in a thread, or its transaction is being committed. `fresh`: it is the first one
    in its task, so that no other job can have left anything behind there.
    """

    job: ClaimedJob
    type: JobType
    task: asyncio.Task[Any]
    session: int
    started: float
    cancellable: bool
    fresh: bool = True
    #: A cancellation came that nobody had asked for: the task is not fit for others.
    spoiled: bool = False
    stopped: Outcome | Fenced | None = None
    #: Strikes at the deadline.
    timer: Timer | None = None
    #: The context of the job's code, once it has begun.
    scope: Context | None = None
    #: Of a transactional job.
    connection: Any = None
    #: What its own transaction was told to write, and whether that was written.
    finishing: Transition | None = None
    written: bool = False
    #: Whether its transaction was committed could not be found out.
    in_doubt: bool = False
    known_as: CurrentJob | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.job!r}>"

    @property
    def handle(self) -> CurrentJob:
        """What its code is told of it."""
        if (handle := self.known_as) is None:
            deadline = None if self.type.timeout is None else self.deadline
            handle = CurrentJob(self.job, self.session, deadline, self.connection)
            self.known_as = handle
        return handle

    @property
    def deadline(self) -> float:
        """When its time is over, by the monotonic clock."""
        return math.inf if self.type.timeout is None else self.started + self.type.timeout

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
