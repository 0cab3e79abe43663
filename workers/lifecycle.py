"""The one table of what an outcome does to a job. Pure: it decides, an engine writes.

    outcome       transition                                             counted
    completed     delete, or archive                                     -
    cancelled     archive as `cancelled`                                 -
    failed        retry after the backoff; dead once attempts are used   retries + 1
    discarded     dead                                                   retries + 1
    snoozed       wait until run_at                                      -
    interrupted   available again (shutdown, deploy, claimed, unstarted) -
    crashed       dead (only asked for once max_crashes is reached)      -

An attempt is counted when its outcome is written, never at the claim, so an interruption costs nothing.
Delays are relative: the database's clock is the only clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .backoff import Backoff, Exponential
from .config import YEAR
from .job import ClaimedJob

__all__ = [
    "Archive",
    "Bury",
    "Cancelled",
    "Completed",
    "Crashed",
    "Delete",
    "Discarded",
    "Failed",
    "Interrupted",
    "JobPolicy",
    "Outcome",
    "Release",
    "Retry",
    "Snoozed",
    "Transition",
    "Wait",
    "clears_crashes",
    "decide",
]

#: No job waits longer than this: an interval that overflows in SQL would stop the queue for everyone.
MAX_DELAY = 100 * YEAR
#: Where a user's backoff has nothing usable to say.
_FALLBACK_DELAY = 60.0


class JobPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a job type declares about its ends."""

    max_attempts: int = 25
    max_crashes: int = 5
    backoff: Backoff = Exponential()
    archive: Callable[[ClaimedJob], bool] | bool = False


class Completed(msgspec.Struct, frozen=True):
    """It returned."""


class Failed(msgspec.Struct, frozen=True):
    """It raised, or ran out of time."""

    error: str
    exception: BaseException | None = None


class Cancelled(msgspec.Struct, frozen=True):
    """It said that it is no longer wanted."""

    reason: str = ""


class Discarded(msgspec.Struct, frozen=True):
    """It can never succeed: it said so, or its payload can't be decoded."""

    reason: str
    error: str | None = None


class Snoozed(msgspec.Struct, frozen=True):
    """It asked to be run later; seconds. Not `begun`: for want of something its code was never reached."""

    delay: float
    begun: bool = True


class Interrupted(msgspec.Struct, frozen=True):
    """It was stopped from outside, or claimed and never started."""

    reason: str = "interrupted"


class Crashed(msgspec.Struct, frozen=True):
    """Its process died under it too often."""


Outcome = Completed | Failed | Cancelled | Discarded | Snoozed | Interrupted | Crashed


class Delete(msgspec.Struct, frozen=True):
    """Remove the row."""


class Archive(msgspec.Struct, frozen=True):
    """Move the row to the archive as `state` ("completed" or "cancelled"). `fault`: what the archive policy raised."""

    state: str
    reason: str | None = None
    fault: BaseException | None = None


class Retry(msgspec.Struct, frozen=True):
    """Count the attempt and make the row wait `delay` seconds. `fault`: what the backoff raised."""

    delay: float
    error: str
    fault: BaseException | None = None


class Wait(msgspec.Struct, frozen=True):
    """Make the row wait `delay` seconds; nothing is counted. Its crashes are forgotten if it has `begun`: it has come to an
    end of its own."""

    delay: float
    begun: bool = True


class Release(msgspec.Struct, frozen=True):
    """Make the row available again; nothing is counted."""


class Bury(msgspec.Struct, frozen=True):
    """Move the row to the dead letters. `attempted`: count the attempt that ended it."""

    reason: str
    error: str | None = None
    attempted: bool = True


Transition = Delete | Archive | Retry | Wait | Release | Bury

_DELETE, _RELEASE, _ARCHIVE = Delete(), Release(), Archive("completed")


def _completed(job: ClaimedJob, outcome: Completed, policy: JobPolicy) -> Transition:
    archive = policy.archive
    if callable(archive):
        archive = archive(job)
    return _ARCHIVE if archive else _DELETE


def _failed(job: ClaimedJob, outcome: Failed, policy: JobPolicy) -> Transition:
    attempts = job.retries + 1
    if attempts >= policy.max_attempts:
        return Bury(f"failed {attempts} of {policy.max_attempts} attempts", outcome.error)
    return Retry(_bounded(policy.backoff.delay(attempts)), outcome.error)


def _crashed(job: ClaimedJob, outcome: Crashed, policy: JobPolicy) -> Transition:
    return Bury(f"its process died under it {job.crashes} times", attempted=False)


_TABLE: dict[type, Callable[[ClaimedJob, Any, JobPolicy], Transition]] = {
    Completed: _completed,
    Failed: _failed,
    Cancelled: lambda job, outcome, policy: Archive("cancelled", outcome.reason),
    Discarded: lambda job, outcome, policy: Bury(outcome.reason, outcome.error),
    Snoozed: lambda job, outcome, policy: Wait(_bounded(outcome.delay), outcome.begun),
    Interrupted: lambda job, outcome, policy: _RELEASE,
    Crashed: _crashed,
}


def decide(job: ClaimedJob, outcome: Outcome, policy: JobPolicy) -> Transition:
    """What `outcome` does to `job` under `policy`. Never raises for what a job, a payload or a strategy says."""
    try:
        return _TABLE[type(outcome)](job, outcome, policy)
    # a user's backoff or archive predicate: its fault must not lose the outcome
    except BaseException as error:
        if isinstance(outcome, Completed):
            return Archive("completed", fault=error)
        text = outcome.error if isinstance(outcome, Failed) else type(outcome).__name__
        note = f"{type(error).__name__} in the retry policy, after:\n{text}"
        return Retry(_FALLBACK_DELAY, note, fault=error)


def clears_crashes(transition: Transition) -> bool:
    """Whether the job has come to an end of its own, so that the deaths it was claimed in were not its doing."""
    return isinstance(transition, Retry) or (isinstance(transition, Wait) and transition.begun)


def _bounded(seconds: float) -> float:
    """`seconds` within 0 and MAX_DELAY; NaN, which compares with nothing, is a minute."""
    if seconds != seconds:
        return _FALLBACK_DELAY
    return min(max(float(seconds), 0.0), MAX_DELAY)
