"""What a running job can ask about itself."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Protocol

from .errors import WorkersError
from .job import ClaimedJob

__all__ = ["CurrentJob", "current_job"]


class CurrentJob:
    """The attempt that is running: returned by `current_job()`."""

    __slots__ = ("_connection", "_deadline", "_job", "_session")

    def __init__(
        self, job: ClaimedJob, session: int, deadline: float | None = None, connection: Any = None
    ) -> None:
        self._job = job
        self._session = session
        self._deadline = deadline
        self._connection = connection

    def __repr__(self) -> str:
        job = self._job
        return f"<CurrentJob {job.id} {job.job_type}, attempt {self.attempt}, queue {job.queue}>"

    @property
    def id(self) -> int:
        """The job's id: the same in every attempt."""
        return self._job.id

    @property
    def job_type(self) -> str:
        """The registered name."""
        return self._job.job_type

    @property
    def queue(self) -> str:
        """The queue it was claimed from."""
        return self._job.queue

    @property
    def priority(self) -> int:
        """Its priority."""
        return self._job.priority

    @property
    def attempt(self) -> int:
        """1 in the first attempt. Interrupted attempts are not counted."""
        return self._job.retries + 1

    @property
    def claim_token(self) -> str:
        """Of this claim alone: tells attempts apart. As the key of an effect that is to happen once, use `id`."""
        return f"{self._session}-{self._job.token}"

    @property
    def deadline(self) -> float | None:
        """When the attempt's timeout strikes, on the clock of `time.monotonic()`; None without a timeout."""
        return self._deadline

    @property
    def remaining(self) -> float | None:
        """Seconds left before the timeout; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def connection(self) -> Any:
        """The connection of a transactional job: what it writes there commits together with its completion.

        A psycopg AsyncConnection for `async def run`, a Connection for `def run`. Raises WorkersError for other jobs.
        """
        if self._connection is None:
            raise WorkersError(
                f"{self.job_type} is not transactional; set `transactional = True` on its class"
            )
        return self._connection


class Running(Protocol):
    """An attempt that runs. Most jobs never ask about themselves: what answers is made when they do."""

    @property
    def handle(self) -> CurrentJob:
        """What `current_job()` returns: the same each time."""


current: ContextVar[Running] = ContextVar("workers_current_job")


def current_job() -> CurrentJob:
    """The job that is running here. Raises WorkersError outside of a job."""
    try:
        return current.get().handle
    except LookupError:
        raise WorkersError("current_job() is for the code of a running job") from None
