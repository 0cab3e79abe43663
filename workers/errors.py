"""Every error that `workers` raises, and the three exceptions that a job may raise to steer its own outcome."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from .job import JobRecord, in_short

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
    "StorageUnusableError",
    "UnsupportedConnectionError",
    "WorkersError",
]


#: Seconds in 100 years; an integer may be longer than what dates, and floats, can hold.
_LONGEST_SNOOZE = 100 * 365.25 * 86_400


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
    """The tables are missing, or not those of this version of the library; or its roles can't be made as they have to be."""


class RunnerError(WorkersError):
    """A runner can't start, or died."""


class FailedJobsError(WorkersError):
    """`Runner.check_for_failed_jobs` found jobs that are dead, or have failed and not succeeded since.

    `job_ids` holds the first of them, `jobs` fewer of them in full: the message has one line of each error.
    """

    def __init__(self, count: int, job_ids: Sequence[int], jobs: Sequence[JobRecord] = ()) -> None:
        ids = ", ".join(map(str, job_ids))
        lines = [f"{count} job{'s' if count > 1 else ''} failed (first ids: {ids})"]
        for job in jobs:
            said = in_short(job.last_error or job.reason or "")
            lines.append(f"  {job.id} {job.job_type}: {said}")
        super().__init__("\n".join(lines))
        self.count = count
        self.job_ids = tuple(job_ids)
        self.jobs = tuple(jobs)


class StorageError(WorkersError):
    """A statement did not succeed."""


class StorageUnavailableError(StorageError):
    """The store can't be reached, or broke off: whether the write happened is unknown. Try again."""


class StorageRejectedError(StorageError):
    """The store refused the statement for what it says: trying the same again is no use."""


class StorageUnusableError(StorageRejectedError):
    """The store lacks what the statement needs, such as a right or a table. Once that is mended the same will do."""


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
    """Raised by a job to be run again after `delay` (seconds or timedelta); counts no attempt.

    Raises ConfigurationError for anything else, and for more than 100 years.
    """

    def __init__(self, delay: float | timedelta) -> None:
        seconds: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_SNOOZE:
            raise ConfigurationError(
                f"Snooze got {delay!r:.50}: give seconds, from 0 to 100 years, or a timedelta"
            )
        super().__init__(f"snoozed for {seconds:g} s")
        self.seconds = float(seconds)


#: What to do where the database says that its user may not.
RIGHTS = (
    "GRANT the user the role for what it does: workers_enqueue to enqueue, workers_worker to run jobs, workers_readonly to "
    "look, workers_migrator to migrate, or those with the prefix that was given to `workers migrate --roles`; see "
    "docs/security.md"
)
