"""Every error that `workers` raises, and the three exceptions that a job may raise to steer its own outcome."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

__all__ = [
    "Cancel",
    "ConfigurationError",
    "Discard",
    "FailedJobsError",
    "InvalidJobError",
    "MigrationError",
    "RegistrationError",
    "RunnerError",
    "Snooze",
    "StorageError",
    "StorageRejectedError",
    "StorageUnavailableError",
    "UnsupportedConnectionError",
    "WorkersError",
]


class WorkersError(Exception):
    """Base of every error that the library raises."""


class ConfigurationError(WorkersError, ValueError):
    """A setting is out of range or contradicts another one."""


class RegistrationError(ConfigurationError):
    """A job class can't be registered: a name is taken, or an annotation can't be resolved."""


class InvalidJobError(WorkersError, ValueError):
    """A job can't be stored; nothing was written."""


class UnsupportedConnectionError(WorkersError, TypeError):
    """`enqueue` was given an object that it can't run SQL on."""


class MigrationError(WorkersError):
    """The tables are missing, or older than this version of the library needs."""


class RunnerError(WorkersError):
    """A runner can't start, or died."""


class FailedJobsError(WorkersError):
    """`Runner.check_for_failed_jobs` found jobs that failed at least once.

    `job_ids` holds the first of them.
    """

    def __init__(self, count: int, job_ids: Sequence[int]) -> None:
        shown = ", ".join(map(str, job_ids))
        super().__init__(f"{count} jobs failed (first ids: {shown})")
        self.count = count
        self.job_ids = tuple(job_ids)


class StorageError(WorkersError):
    """A statement did not succeed."""


class StorageUnavailableError(StorageError):
    """The store can't be reached, or broke off: whether the write happened is unknown. Try again."""


class StorageRejectedError(StorageError):
    """The store refused the statement for what it says: trying the same again is no use."""


class Cancel(Exception):  # noqa: N818 - control flow, not an error
    """Raised by a job to end it for good, as `cancelled`: no retry, no dead letter."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Discard(Exception):  # noqa: N818 - control flow, not an error
    """Raised by a job that can never succeed: it becomes a dead letter at once."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Snooze(Exception):  # noqa: N818 - control flow, not an error
    """Raised by a job to be run again after `delay` (seconds or timedelta); counts no attempt."""

    def __init__(self, delay: float | timedelta) -> None:
        seconds: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise ConfigurationError(
                f"Snooze got {delay!r}: give seconds, 0 or more, or a timedelta"
            )
        super().__init__(f"snoozed for {seconds:g} s")
        self.seconds = float(seconds)
