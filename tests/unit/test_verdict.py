"""What an exception means for the job that raised it."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import pytest

from workers import BackgroundJob, Cancel, Discard, Snooze
from workers.errors import StorageUnavailableError
from workers.job import ClaimedJob
from workers.job_type import describe
from workers.lifecycle import (
    Cancelled,
    Crashed,
    Discarded,
    Failed,
    Interrupted,
    Outcome,
    Snoozed,
)
from workers.runtime.attempt import Attempt, Fenced
from workers.runtime.verdict import Stopped, TooManyCrashes, Undecodable, outcome_of


class Mail(BackgroundJob[Any]):
    async def run(self, ctx: Any) -> None: ...


@pytest.fixture
async def attempt() -> Attempt:
    """One whose code has begun."""
    task = asyncio.current_task()
    assert task is not None
    job = ClaimedJob(1, "mail", "default", 0, "{}", 0, 0, False, 1)
    made = Attempt(job, describe(Mail), task, 1, 0.0, True)
    made.cancellable = False  # or stopping it would cancel this test
    made.scope = copy_context()
    return made


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), Failed),
        (Cancel("not needed"), Cancelled),
        (Discard("never"), Discarded),
        (Snooze(5), Snoozed),
        (TooManyCrashes(), Crashed),
        (Undecodable("no JSON"), Discarded),
        (asyncio.CancelledError(), Failed),
        (StorageUnavailableError("its own business"), Failed),
        (SystemExit(1), Failed),
    ],
)
async def test_what_an_exception_means(
    attempt: Attempt, error: BaseException, kind: type[Outcome]
) -> None:
    assert type(outcome_of(error, attempt, closing=False)) is kind
    assert not attempt.spoiled


@pytest.mark.parametrize(
    "error", [ValueError(), Cancel("done"), Snooze(1), asyncio.CancelledError()]
)
async def test_a_fenced_attempt_says_nothing(attempt: Attempt, error: BaseException) -> None:
    """Guarantee 2: whatever it raises, the job is somebody else's."""
    attempt.stop(Fenced())
    assert isinstance(outcome_of(error, attempt, closing=False), Fenced)


async def test_a_stopped_job_may_say_what_becomes_of_it(attempt: Attempt) -> None:
    """Not that it failed: that is what stopping it makes of it."""
    attempt.cancellable = True
    attempt.stopped = Interrupted("shutdown")
    assert outcome_of(ValueError(), attempt, closing=False) == Interrupted("shutdown")
    assert outcome_of(Snooze(5), attempt, closing=False) == Snoozed(5)


async def test_time_that_was_over_before_the_code_began_counts_nothing(attempt: Attempt) -> None:
    """Rule 16: it waited for a transaction that could not begin."""
    attempt.scope = None
    attempt.stop(Failed("timed out after 3 s"))
    assert outcome_of(asyncio.CancelledError(), attempt, closing=False) == Snoozed(5.0, begun=False)
    attempt.stopped = None
    error = StorageUnavailableError("no connection")
    assert outcome_of(error, attempt, closing=False) == Snoozed(5.0, begun=False)


async def test_a_loop_that_closes_interrupts(attempt: Attempt) -> None:
    outcome = outcome_of(asyncio.CancelledError(), attempt, closing=True)
    assert isinstance(outcome, Interrupted)


async def test_a_cancellation_of_the_task_spoils_it(attempt: Attempt) -> None:
    """Rule 13: that nobody here asked for."""
    attempt.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert isinstance(outcome_of(asyncio.CancelledError(), attempt, closing=False), Failed)
    assert attempt.spoiled
    attempt.task.uncancel()


async def test_the_cancellation_of_a_job_that_cancels_itself_is_shown_without_passwords(
    attempt: Attempt,
) -> None:
    error = asyncio.CancelledError("postgresql://me:hunter2@host/db")
    outcome = outcome_of(error, attempt, closing=False)
    assert isinstance(outcome, Failed)
    assert type(outcome.exception).__name__ == "CancelledError"
    assert "hunter2" not in f"{outcome.error} {outcome.exception!r}"


async def test_a_job_that_ran_out_of_time_tells_where_without_passwords(attempt: Attempt) -> None:
    """What it made of being stopped, whatever that is, comes after our own words."""
    attempt.stop(Failed("timed out after 3 s", TimeoutError("timed out after 3 s")))
    try:
        raise ValueError("postgresql://me:hunter2@host/db")
    except ValueError as error:
        outcome = outcome_of(error, attempt, closing=False)
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("timed out after 3 s (ended after ")
    assert outcome.error.endswith("\nValueError: postgresql://me:***@host/db\n")
    assert type(outcome.exception) is TimeoutError
    assert type(cause := outcome.exception.__cause__).__name__ == "ValueError"
    assert "hunter2" not in repr(cause)


async def test_our_own_way_to_stop_a_job_is_not_shown(attempt: Attempt) -> None:
    attempt.stop(Failed("timed out after 3 s"))
    outcome = outcome_of(Stopped(), attempt, closing=False)
    assert isinstance(outcome, Failed)
    assert "\n" not in outcome.error
